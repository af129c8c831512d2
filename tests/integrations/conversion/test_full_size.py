"""A Chinese-CLIP ViT-B/16 and a SigLIP 2 base of the published sizes, with random weights: embeddings and logits."""

import shutil

import pytest
import torch
from transformers import (
    AutoModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    SiglipConfig,
    SiglipModel,
)

from modeling_r2d2 import R2D2Model
from modeling_r2d2.inference.loading import load_whole

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
B16 = {**BASE, "image_size": 224, "patch_size": 16}
#: OFA-Sys/chinese-clip-vit-base-patch16 and google/siglip2-base-patch16-224, as their config.json say.
SIZES = {
    "chinese_clip": (
        ChineseCLIPModel,
        ChineseCLIPConfig(
            text_config={**BASE, "vocab_size": 21128, "max_position_embeddings": 512, "type_vocab_size": 2},
            vision_config=B16,
            projection_dim=512,
        ),
        188_262_913,
    ),
    "siglip2": (
        SiglipModel,
        SiglipConfig(
            text_config={**BASE, "vocab_size": 256_000, "max_position_embeddings": 64, "projection_size": 768},
            vision_config=B16,
        ),
        375_187_970,
    ),
}
IMAGES, TEXTS, LENGTH = 3, 4, 64


@pytest.fixture(scope="module", params=list(SIZES))
def folder(request, tmp_path_factory):
    kind, config, parameters = SIZES[request.param]
    torch.manual_seed(0)
    model = kind(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    model.logit_scale.data.fill_(4.6052)  # 100, as all of them end
    place = tmp_path_factory.mktemp("full") / request.param
    model.save_pretrained(place)
    yield place
    shutil.rmtree(place)


def inputs(config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, config.text_config.vocab_size, (TEXTS, LENGTH), generator=generator)
    given = {"pixel_values": torch.randn(IMAGES, 3, 224, 224, generator=generator), "input_ids": ids}
    if config.model_type == "siglip":
        return given
    mask = (torch.arange(LENGTH) < torch.tensor([[64], [9], [20], [3]])).long()
    return {**given, "input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_numbers_are_those_of_the_sources_class(folder, attn):
    own = AutoModel.from_pretrained(folder, attn_implementation=attn).eval()
    given = inputs(own.config)
    with torch.no_grad():
        expected = own(**given)
    del own
    model = load_whole(R2D2Model, folder, attn_implementation=attn)
    with torch.no_grad():
        found = model(**given)
    for name in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(
            found[name], expected[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert float(expected.logits_per_image.std()) > 0.1, "logits that do not differ prove nothing"
