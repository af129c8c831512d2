"""Freezing, groups, schedules' edges and settings."""

import pytest
import torch
from torch import nn

from modeling_r2d2 import R2D2ForImageTextRetrieval
from modeling_r2d2.finetuning import FinetuningSettings
from modeling_r2d2.finetuning.adapters import add_adapters
from modeling_r2d2.finetuning.parameters import freeze, frozen_modules, parameter_groups
from modeling_r2d2.finetuning.schedules import matching_rate, retrieval_rate
from modeling_r2d2.finetuning.settings import LoRASettings
from modeling_r2d2.inference.loading import load_whole
from tests.integrations.conversion.dual_encoder_sources import save
from tests.tiny import tiny_config


def model(tower: str = "resnet") -> R2D2ForImageTextRetrieval:
    return R2D2ForImageTextRetrieval(tiny_config(tower))


def test_freezing_by_part_and_by_pattern():
    network = model()
    count = freeze(network, ["vision_model", "text_model.encoder.layer.[01].attention.*"])
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert count == sum(p.numel() for name, p in network.named_parameters() if name in frozen)
    assert all(name in frozen for name, _ in network.named_parameters() if name.startswith("vision_model."))
    assert "text_model.encoder.layer.0.attention.self.query.weight" in frozen
    assert "text_model.encoder.layer.0.intermediate.dense.weight" not in frozen
    assert "vision_projection.weight" not in frozen


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_every_adapter_of_other_towers_trains(kind, tmp_path):
    """Also where a tower has an attention that reads its weights past its layers."""
    pytest.importorskip("peft")
    network = load_whole(R2D2ForImageTextRetrieval, save(tmp_path, kind))
    adapted = add_adapters(network, LoRASettings(rank=2)).train()
    config = network.config
    length = config.max_text_length if config.attend_padding else 7
    ids = torch.randint(4, config.text_config.vocab_size, (3, length))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(3, 3, 32, 32)}
    adapted(**given, image_ids=torch.arange(3)).loss.backward()
    lacking = [name for name, each in adapted.named_parameters() if each.requires_grad and each.grad is None]
    assert not lacking
    adapters = [name for name, each in adapted.named_parameters() if each.requires_grad and ".lora_B" in name]
    assert {"text_model", "vision_model"} <= {name.split(".")[2] for name in adapters}


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(ValueError, match=r"'visual' matches no parameter; the parts of the model are vision_model"):
        freeze(model(), ["visual"])
    with pytest.raises(ValueError, match="nothing to train"):
        freeze(model(), ["*"])


def test_frozen_modules_are_the_largest_ones():
    network = model()
    freeze(network, ["vision_model", "text_model.embeddings"])
    found = frozen_modules(network)
    assert network.vision_model in found
    assert network.text_model.embeddings in found
    assert len(found) == 2


@pytest.mark.parametrize(("decay", "weights"), [("all", "all"), ("not-biases", "no bias"), ("matrices", "matrices")])
def test_groups_hold_every_parameter_once(decay, weights):
    network = model()
    freeze(network, ["vision_model"])
    groups = parameter_groups(network, 1e-3, 0.05, decay, {"text_model": 0.1, "text_model.embeddings": 0.01})
    held = {name: group for group in groups for name in group["names"]}
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert held.keys() == parameters.keys()
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    for name, parameter in parameters.items():
        decays = {"all": True, "no bias": not name.endswith("bias"), "matrices": parameter.dim() > 1}[weights]
        assert held[name]["weight_decay"] == (0.05 if decays else 0.0), name
        scale = 0.01 if name.startswith("text_model.embeddings") else 0.1 if name.startswith("text_model") else 1
        assert held[name]["lr"] == pytest.approx(1e-3 * scale), name


def test_a_rate_for_nothing_is_refused():
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rates for text match no parameter that trains"):
        parameter_groups(network, 1.0, 0.0, rates={"text": 2.0})


def test_retrieval_schedule_without_warm_up_and_with_a_long_one():
    plain = [retrieval_rate(s, epochs=4, steps_per_epoch=3, base=1.0, warmup_steps=0) for s in range(12)]
    assert plain == pytest.approx([1] * 3 + [0.8535534] * 3 + [0.5] * 3 + [0.1464466] * 3)
    longer = [retrieval_rate(s, epochs=2, steps_per_epoch=3, base=1.0, warmup_steps=99, start=0.1) for s in range(6)]
    assert longer == pytest.approx([0.1 + 0.9 * s / 99 for s in range(6)])


def test_matching_schedule_is_a_triangle():
    rates = [matching_rate(s, base=1.0, half_period=4, low=0.2) for s in range(9)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_published_presets_are_those_of_the_paper(tmp_path):
    retrieval = FinetuningSettings.from_preset("retrieval", tmp_path)
    assert (retrieval.learning_rate, retrieval.weight_decay, retrieval.warmup_steps) == (1e-5, 0.05, 500)
    assert (retrieval.lr_scheduler_type, retrieval.per_device_train_batch_size, retrieval.freeze) == (
        "retrieval",
        32,
        ("vision_model",),
    )
    matching = FinetuningSettings.from_preset("matching", tmp_path)
    assert (matching.learning_rate, matching.weight_decay, matching.warmup_steps) == (3e-6, 0.01, 3125)
    assert (matching.lr_scheduler_type, matching.per_device_train_batch_size, matching.num_train_epochs) == (
        "matching",
        64,
        20,
    )
    small = FinetuningSettings.from_preset("retrieval", tmp_path, "small", num_train_epochs=3, patience=None)
    assert small.lora is not None
    assert small.patience > 0
    assert small.multi_positive
    assert (small.num_train_epochs, small.freeze) == (3, ())
    assert small.learning_rate > retrieval.learning_rate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poetry", "x"), "task is 'poetry'"),
        (("retrieval", "x", "huge"), "there are published, small"),
    ],
)
def test_unknown_presets(arguments, message):
    with pytest.raises(ValueError, match=message):
        FinetuningSettings.from_preset(*arguments)


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="no such settings: epoch"):
        FinetuningSettings.from_preset("retrieval", tmp_path, epoch=3)
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        FinetuningSettings(output=tmp_path, per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="half the period"):
        FinetuningSettings(output=tmp_path, task="matching", lr_scheduler_type="matching", warmup_steps=0.1)
    with pytest.raises(ValueError, match="has no {} for the class"):
        FinetuningSettings(output=tmp_path, task="classification", prompts=("{}的图片", "一张图片"))


def test_warm_up_is_steps_or_a_share_of_them(tmp_path):
    assert FinetuningSettings(output=tmp_path, warmup_steps=500).warmup_of(50) == 500
    assert FinetuningSettings(output=tmp_path, warmup_steps=0.1).warmup_of(55) == 6
    assert FinetuningSettings(output=tmp_path, warmup_steps=0).warmup_of(55) == 0


def test_multi_positive_loss_is_the_formula():
    """GCPR in numpy with y_ij = 1[same picture or same caption] / their number, and no drawn negative among them."""
    import numpy as np

    from tests.tiny import tiny_batch

    network = model("clip").eval()
    batch = tiny_batch(6, masked=False)
    image_ids, text_ids = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([10, 11, 12, 12, 13, 11])
    with torch.no_grad():
        output = network(**{**batch, "image_ids": image_ids}, text_ids=text_ids)
    same = (image_ids[:, None] == image_ids) | (text_ids[:, None] == text_ids)
    assert same.sum() == 12
    images, texts = output.image_embeds.double().numpy(), output.text_embeds.double().numpy()
    logits = images @ texts.T / 0.07
    targets = same.double().numpy()
    targets /= targets.sum(1, keepdims=True)

    def entropy(scores: np.ndarray) -> float:
        log_p = scores - scores.max(1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
        return -(targets * log_p).sum(1).mean()

    assert output.loss_gcpr.item() == pytest.approx((entropy(logits) + entropy(logits.T)) / 2, rel=1e-5)
    negatives = network.pick_negatives(output.logits_per_image, output.logits_per_text, same)
    rows = torch.arange(6)
    assert not same[rows, negatives.image_index].any()
    assert not same[rows, negatives.text_index].any()
    alone = network(**{**batch, "image_ids": image_ids})
    assert alone.loss_gcpr.item() != pytest.approx(output.loss_gcpr.item(), rel=1e-3)
    with pytest.raises(ValueError, match="text_ids come together with image_ids"):
        network(**{**batch, "image_ids": None}, text_ids=text_ids)
