"""Idioms of training that transformers' own models bear: several forward passes before a backward pass, on one process
and two, checkpointing of the whole model, torch.func, torch.compile."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from modeling_r2d2 import (
    R2D2ForImageClassification,
    R2D2ForImageTextRetrieval,
    R2D2ForPreTraining,
    R2D2Model,
    WukongModel,
)
from tests.processes import in_two_processes
from tests.tiny import TOWERS, tiny_batch, tiny_config
from tests.wukong.tiny import tiny_wukong_config

KINDS = ("model", "pretraining", "retrieval", "classification", "wukong", "wukong-token-wise")


def trained(kind: str, dropout: float = 0.1, **kwargs) -> tuple[nn.Module, dict]:
    """A model in training mode, its temperature above the bound, and a batch that gives a loss."""
    torch.manual_seed(0)
    batch = {k: v for k, v in tiny_batch(4).items() if k in ("input_ids", "attention_mask", "pixel_values")}
    if kind.startswith("wukong"):
        model = WukongModel(tiny_wukong_config("filip" if kind.endswith("wise") else "clip", **kwargs))
        batch["return_loss"] = True
    else:
        classes = {
            "model": R2D2Model,
            "pretraining": R2D2ForPreTraining,
            "retrieval": R2D2ForImageTextRetrieval,
            "classification": R2D2ForImageClassification,
        }
        model = classes[kind](tiny_config(dropout=dropout, **kwargs))
        batch["return_loss"] = True
        if kind == "classification":
            batch = {"pixel_values": batch["pixel_values"], "labels": torch.tensor([0, 1, 0, 1])}
    with torch.no_grad():
        model.temperature.fill_(model.config.temperature_max + 0.01)
    return model.train(), batch


def logits_of(output) -> torch.Tensor:
    return output["logits" if "logits" in output else "logits_per_image"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_forwards_before_a_backward(kind):
    """R-Drop, and a loss of the caller's own beside the model's; the parameter is within its bounds afterwards."""
    model, batch = trained(kind)
    first, second = model(**batch), model(**batch)
    drop = nn.functional.mse_loss(logits_of(first), logits_of(second))
    (first.loss + second.loss + drop + logits_of(first).mean()).backward()
    assert torch.isfinite(model.temperature.grad)
    assert model.temperature.grad != 0
    assert model.temperature.item() == pytest.approx(model.config.temperature_max)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_at_the_bounds_does_not_die(training):
    model, batch = trained("model", dropout=0.0)
    high = model.config.temperature_max
    within = copy.deepcopy(model).train(training)
    with torch.no_grad():
        within.temperature.fill_(high)
    for each in (model.train(training), within):
        each(**batch).loss.backward()
    assert model.bounded_temperature().item() == pytest.approx(high)
    torch.testing.assert_close(model.temperature.grad, within.temperature.grad, rtol=0, atol=0)
    moved = model.temperature.item() == pytest.approx(high)
    assert moved == training  # evaluation changes nothing


@pytest.mark.parametrize("reentrant", [True, False])
def test_whole_model_within_a_checkpoint(reentrant):
    model, batch = trained("model", dropout=0.0)
    plain = copy.deepcopy(model)
    plain(**batch).loss.backward()
    pixels = batch.pop("pixel_values").requires_grad_()
    loss = checkpoint(lambda p: model(pixel_values=p, **batch).loss, pixels, use_reentrant=reentrant)
    loss.backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@pytest.mark.parametrize("kind", ["model", "wukong"])
def test_per_sample_functional_gradients(kind):
    """torch.func: the parameters that it is given are left as they are."""
    model, batch = trained(kind, dropout=0.0)
    model.set_attn_implementation("eager")
    given = {name: value.detach() for name, value in model.named_parameters()}
    given["temperature"] = given["temperature"].clone()
    before = given["temperature"].clone()

    def loss(parameters):
        return torch.func.functional_call(model, parameters, kwargs=batch).loss

    gradients = torch.func.grad(loss)(given)
    assert gradients["temperature"] != 0
    assert torch.equal(given["temperature"], before)


def test_compiled_training_step_equals_the_plain_one():
    model, batch = trained("model", dropout=0.0, ranker=False)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    for each in (plain, compiled):
        each(**batch).loss.backward()
    torch.testing.assert_close(model.temperature.grad, plain.temperature.grad)
    torch.testing.assert_close(model.temperature.data, plain.temperature.data)


def test_compiled_pretraining():
    model, _ = trained("pretraining", dropout=0.0)
    batch = tiny_batch(4)
    loss = torch.compile(model, backend="aot_eager")(**batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.temperature.item() == pytest.approx(model.config.temperature_max)


@pytest.mark.parametrize("kind", ["model", "wukong"])
def test_export_in_training_mode(kind):
    """As a model is that was just made."""
    model, batch = trained(kind, dropout=0.0)
    program = torch.export.export(model, (), kwargs=batch, strict=False)
    torch.testing.assert_close(program.module()(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("tower", ["clip", "swin", "convnext"])
def test_input_gradients_of_every_class(tower):
    """What adapters under reentrant checkpointing ask for."""
    for cls in (R2D2Model, R2D2ForImageClassification):
        model = cls(tiny_config(tower)).requires_grad_(False)
        model.enable_input_require_grads()
        batch = {"pixel_values": tiny_batch(2)["pixel_values"]}
        output = model(**batch)
        reaches = (output.logits if cls is R2D2ForImageClassification else output.image_embeds).requires_grad
        assert reaches == (tower != "convnext")  # which embeds nothing
        model.disable_input_require_grads()
        output = model(**batch)
        assert not (output.logits if cls is R2D2ForImageClassification else output.image_embeds).requires_grad


def _ddp_worker(number: int) -> dict:
    kept = {}
    for kind in ("model", "pretraining", "wukong"):
        model, batch = trained(kind, dropout=0.0)
        parallel = DistributedDataParallel(model, find_unused_parameters=True)
        rows = {k: v[2 * number : 2 * number + 2] if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        # as transformers' contrastive script: every output passes DistributedDataParallel, whose hooks reach the logits
        parallel(**rows).loss.backward()
        once = model.temperature.grad.clone()
        model.zero_grad()
        first, second = parallel(**rows), parallel(**rows)
        ((first.loss + second.loss) / 2).backward()
        kept[kind] = (once, model.temperature.grad)
    return kept


def test_two_processes():
    """DistributedDataParallel sends buffers before each forward pass; those that never change stay at home."""
    first, second = in_two_processes(_ddp_worker)
    for kind, (once, twice) in first.items():
        torch.testing.assert_close(once, second[kind][0], msg=kind)
        if kind != "pretraining":  # which draws negatives
            torch.testing.assert_close(once, twice, msg=kind)


@pytest.mark.parametrize("tower", [t for t in TOWERS if t != "resnet"])
def test_buffers_are_left_alone(tower):
    """No forward pass but a batch norm's writes to a buffer."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(tower)).train()
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    model(**tiny_batch(4))
    assert {name: buffer._version for name, buffer in model.named_buffers()} == versions
