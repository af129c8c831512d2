"""The authors' fine-tuning: learning rates, parameter groups, and a step of retrieval and of matching."""

import json
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from modeling_r2d2 import R2D2ForImageTextMatching, R2D2ForImageTextRetrieval
from modeling_r2d2.finetuning.parameters import freeze, parameter_groups
from modeling_r2d2.finetuning.schedules import factor, matching_rate, retrieval_rate
from modeling_r2d2.finetuning.settings import FinetuningSettings
from tests import golden
from tests.golden import ATOL_GRADIENT, close
from tests.test_golden_r2d2 import CASE, PAIRS, check_gradients, recorded_negatives

SCHEDULES = json.loads((golden.GOLDEN / "schedules.json").read_text(encoding="utf-8"))


def test_retrieval_rates():
    recorded = SCHEDULES["retrieval"]
    settings = recorded["cfg"]
    rates = [
        retrieval_rate(
            step,
            epochs=recorded["epochs"],
            steps_per_epoch=recorded["steps_per_epoch"],
            base=settings["base_lr"],
            warmup_steps=settings["warmup_steps"],
            start=settings["warmup_lr"],
        )
        for step in range(len(recorded["lr_per_step"]))
    ]
    assert rates == pytest.approx(recorded["lr_per_step"], rel=1e-12, abs=0)


def test_matching_rates():
    recorded = SCHEDULES["matching"]
    expected = [groups[0] for groups in recorded["lr_per_step_by_group"]]
    rates = [
        matching_rate(step, base=recorded["base_lr"], half_period=recorded["warmup_steps"])
        for step in range(len(expected))
    ]
    assert rates == pytest.approx(expected, rel=1e-9, abs=0)


def matching_optimizer(rates: dict[str, float]) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    return torch.optim.AdamW(parameter_groups(model, 3e-6, 0.01, "not-biases", rates))


def of_parameter(optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {
        name: {"name": name, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in optimizer.param_groups
        for name in group["names"]
    }


def test_matching_groups_as_they_are_set_up():
    """Biases without decay; the authors' code also doubles their rate, which we can say and do not by default."""
    recorded = {group["name"]: group for group in SCHEDULES["matching_groups_before_scheduler"]}
    groups = of_parameter(matching_optimizer({"*.bias": 2.0}))
    assert groups.keys() == recorded.keys()
    for name, group in groups.items():
        assert group == pytest.approx(recorded[name])


def test_matching_groups_as_they_train():
    """The authors' scheduler gives every group one rate, at every step: so does ours over the preset's groups."""
    settings = FinetuningSettings.from_preset("matching", "unused")
    assert (settings.rates, settings.decay, settings.learning_rate) == ({}, "not-biases", 3e-6)
    optimizer = matching_optimizer(settings.rates)
    scheduler = LambdaLR(optimizer, factor(partial(matching_rate, half_period=50), 3e-6))
    trained = []
    for _ in range(170):
        trained.append([group["lr"] for group in of_parameter(optimizer).values()])
        optimizer.step()
        scheduler.step()
    recorded = SCHEDULES["matching"]["lr_per_step_by_group"]
    assert torch.tensor(trained, dtype=torch.float64).numpy() == pytest.approx(
        torch.tensor(recorded, dtype=torch.float64).numpy(), rel=1e-9, abs=0
    )
    decays = {name: group["weight_decay"] for name, group in of_parameter(optimizer).items()}
    assert decays == {g["name"]: g["weight_decay"] for g in SCHEDULES["matching_groups_after_scheduler"]}


@pytest.fixture(scope="module")
def converted():
    return golden.model(CASE)


def load(kind, converted):
    model = kind(converted.config).eval()
    model.load_state_dict(converted.state_dict())
    freeze(model, FinetuningSettings.from_preset("retrieval", "unused").freeze)
    return model


@pytest.mark.parametrize("step", ["retr_distinct", "retr_dup"])
def test_retrieval_step(converted, step):
    """Losses and gradients of the authors' step, by our class, frozen by the preset, where captions differ."""
    expected = golden.arrays(CASE)
    model = load(R2D2ForImageTextRetrieval, converted)
    ids = expected[f"{step}_idx"]
    output = model(
        **{name: expected[name][:PAIRS] for name in ("input_ids", "attention_mask", "pixel_values")},
        image_ids=ids,
        text_ids=torch.arange(PAIRS),
        hard_negatives=recorded_negatives(expected, step),
    )
    close(output.loss_gcpr, expected[f"{step}_loss_gcpr"])
    close(output.loss_fgr, expected[f"{step}_loss_fgr"])
    output.loss.backward()
    check_gradients(model, step, expected)
    close(model.temperature, expected[f"{step}_temp_after"], 0)


def test_matching_step(converted):
    """The probabilities are the authors'. Their loss is a cross-entropy of these (a softmax of a softmax), ours of
    the logits: from our outputs theirs follows with its gradients, and ours is the formula in our docstring."""
    expected = golden.arrays(CASE)
    model = load(R2D2ForImageTextMatching, converted)
    labels = expected["matching_targets"]
    output = model(**{name: expected[name] for name in ("input_ids", "attention_mask", "pixel_values")}, labels=labels)
    close(output.match_probability, expected["matching_pred"][:, 1])
    probabilities = torch.stack([1 - output.match_probability, output.match_probability], dim=1)
    theirs = nn.functional.cross_entropy(probabilities, labels)
    close(theirs, expected["matching_loss"])
    both = torch.stack([output.text_match_logits, output.image_match_logits]).double()
    chosen = both.gather(2, labels.expand(2, -1)[..., None]).squeeze(2)
    close(output.loss.double(), (both.exp().sum(dim=2).log() - chosen).mean())
    theirs.backward()
    check_gradients(model, "matching", expected)
    assert ATOL_GRADIENT == 1e-4
