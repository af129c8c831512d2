"""The authors' sizes: every name of their checkpoint, and the embeddings of weights made by rule."""

import json

import numpy as np
import pytest
import torch

from modeling_r2d2 import BriVLConfig, BriVLModel
from modeling_r2d2.integrations.brivl import convert_brivl_state_dict
from tests.brivl.golden import GOLDEN, pairs, processor
from tests.brivl.rule import weights_by_rule

KEYS = json.loads((GOLDEN / "full" / "keys_full.json").read_text(encoding="utf-8"))


def as_momentum(name: str) -> str:
    return name.replace("encoder.", "encoder_mom.", 1)


@pytest.mark.parametrize("momentum", [False, True])
def test_every_name_is_explained(momentum):
    with torch.device("meta"):
        own = {
            name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype, _) in KEYS["keys"].items()
        }
    whole = {**own, **{as_momentum(name): tensor for name, tensor in own.items()}}
    assert len(whole) == KEYS["n_tensors"] == 2320
    tensors, report = convert_brivl_state_dict(whole, BriVLConfig.from_preset("brivl-b5-380"), momentum=momentum)
    assert not report.unknown
    assert set(report.used) | set(report.unused) == set(whole)
    assert not set(report.used) & set(report.unused)
    assert all(("_mom." in name) == momentum for name in report.used)
    reasons = {reason: len(names) for reason, names in report.unused_by_reason().items()}
    # of both the encoders and their copies: classifier 2, pooler 2, position_ids 1 each; the other half of the rest
    assert sorted(reasons.values()) == [2, 4, 4, len(report.used)]
    with torch.device("meta"):
        model = BriVLModel(BriVLConfig.from_preset("brivl-b5-456"))
    assert {name: tuple(t.shape) for name, t in model.state_dict().items() if name != "temperature"} == {
        name: tuple(t.shape) for name, t in tensors.items()
    }


def test_what_the_authors_train():
    with torch.device("meta"):
        model = BriVLModel(BriVLConfig.from_preset("brivl-b5-380", freeze_lower_layers=True))
        own = {
            name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype, _) in KEYS["keys"].items()
        }
    _, report = convert_brivl_state_dict(own, model.config)
    trained = {name for theirs, (_, _, trains) in KEYS["keys"].items() if trains and theirs in report.used
               for name in report.used[theirs].split(", ")}  # fmt: skip
    ours = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ours - {"temperature"} == trained
    count = sum(p.numel() for name, p in model.named_parameters() if name in trained)
    assert count == KEYS["n_trained"]


@pytest.fixture(scope="module")
def tensors():
    """Under the names of the model."""
    config = BriVLConfig.from_preset("brivl-b5-380")
    return {**convert_brivl_state_dict(weights_by_rule(), config)[0], "temperature": torch.tensor(0.07)}


@pytest.mark.parametrize("size", [380, 456])
@torch.no_grad()
def test_embeddings_of_weights_by_rule(tensors, size):
    expected = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "full" / "golden.npz").items()}
    config = BriVLConfig.from_preset(f"brivl-b5-{size}")
    assert config.vision_config.depthwise_padding == {380: [8], 456: [13, 27]}[size]
    with torch.device("meta"):
        model = BriVLModel(config).eval()
    model.load_state_dict(tensors, assign=True)
    bert = model.text_model.bert.embeddings  # what a state dict does not hold
    bert.position_ids, bert.token_type_ids = torch.arange(512)[None], torch.zeros(1, 512, dtype=torch.int64)
    examples = pairs("brivl_76")[:3]
    encode = processor("brivl_76").__class__.build(processor("brivl_76").tokenizer, size, exif_transpose=False)
    batch = encode(images=[e["image"] for e in examples], boxes=[e["boxes"] for e in examples], return_tensors="pt")
    every = batch["pixel_values"][:, :, ::19, ::19]
    torch.testing.assert_close(every, expected[f"s{size}_pixel_values_every_19th"], atol=1e-6, rtol=0)
    count = batch["boxes"].shape[1]
    torch.testing.assert_close(batch["boxes"], expected[f"s{size}_boxes"][:, :count], atol=0, rtol=0)
    feature_map = model.vision_model.backbone.feature_map(batch["pixel_values"])
    recorded = expected[f"s{size}_feature_map_every_64th_channel"]
    torch.testing.assert_close(feature_map[:, ::64], recorded, atol=2e-4, rtol=0)
    mask = torch.arange(80) < expected["text_lengths"][:, None]
    output = model(input_ids=expected["input_ids"], attention_mask=mask, **batch)
    torch.testing.assert_close(output.image_embeds, expected[f"s{size}_image_embed"], atol=2e-6, rtol=0)
    torch.testing.assert_close(output.text_embeds, expected["text_embed"], atol=2e-6, rtol=0)
    cosine = output.logits_per_image * model.temperature
    torch.testing.assert_close(cosine, expected[f"s{size}_cosine"], atol=1e-5, rtol=0)
