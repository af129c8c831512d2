"""The share of every objective in the gradient that reaches the towers."""

import pytest
import torch
import torch.distributed as dist

from modeling_r2d2 import R2D2ForPreTraining, R2D2TrainingArguments
from modeling_r2d2.training.gradient_shares import gradient_shares, tower_states
from tests.distillation.runs import STEPS, callback, everything, trainer
from tests.processes import in_two_processes
from tests.tiny import tiny_config
from tests.training.test_grad_cache import NEGATIVES, batch, teacher_of

PARTS = ("loss_tgd", "loss_fgr", "loss_mlm", "loss_fgd")


def student(tower: str = "clip", **config) -> R2D2ForPreTraining:
    torch.manual_seed(0)
    return R2D2ForPreTraining(tiny_config(tower, fgd_prototypes=48, fgd_weight=0.5, mlm_weight=2.0, **config)).train()


def measured(model: R2D2ForPreTraining, rows: slice = slice(None), wrapped=None) -> dict[str, torch.Tensor]:
    inputs = {name: value[rows] for name, value in batch().items()}
    teacher = teacher_of(model, inputs)
    if dist.is_initialized():
        teacher.feature_guided = None  # its patches are drawn by worker
    with tower_states(model) as states:
        negatives = type(NEGATIVES)(*(part[rows] for part in NEGATIVES))
        output = (wrapped or model)(**inputs, teacher=teacher, hard_negatives=negatives)
    parts = {name: output[name] for name in PARTS if output.get(name) is not None}
    shares = gradient_shares(model.weighted_losses(parts), states)
    assert all(parameter.grad is None for parameter in model.parameters())
    output.loss.backward()  # the graph is still there
    return shares


@pytest.mark.parametrize("tower", ["clip", "resnet"])
def test_shares_are_those_of_the_objectives_one_by_one(tower):
    """Against passes of their own: all weights but one are 0, and the states keep their gradient."""
    shares = measured(student(tower))
    norms = {}
    for name, part in zip(PARTS, ("gcpr", "fgr", "mlm", "fgd"), strict=True):
        model = student(tower)
        for other in ("gcpr", "fgr", "mlm", "fgd"):
            if other != part:
                setattr(model.config, f"{other}_weight", 0.0)
        kept = []

        def keep(module, arguments, output, kept=kept):
            output.last_hidden_state.retain_grad()
            kept.append(output.last_hidden_state)

        teacher = teacher_of(model, batch())
        for each in (model.vision_model, model.text_model):
            each.register_forward_hook(keep)
        model(**batch(), teacher=teacher, hard_negatives=NEGATIVES).loss.backward()
        assert len(kept) == 3  # images, whole and masked texts in one pass, masked images
        norms[name] = sum((each.grad.double() ** 2).sum().item() for each in kept if each.grad is not None) ** 0.5
    total = sum(norms.values())
    assert {name: share.item() for name, share in shares.items()} == pytest.approx(
        {name: norm / total for name, norm in norms.items()}, rel=1e-4
    )


def test_a_frozen_tower_has_no_part():
    model = student()
    model.vision_model.requires_grad_(False)
    assert sum(share.item() for share in measured(model).values()) == pytest.approx(1)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_they_are_logged_and_change_nothing(accumulation, tmp_path):
    results = []
    for asked in (False, True):
        distillation = callback()
        run = trainer(
            tmp_path / str(asked),
            "r2d2",
            accumulation,
            [distillation],
            gradient_shares=asked,
            logging_steps=2,
            logging_first_step=True,
            save_strategy="no",
        )
        run.train()
        results.append((everything(run, distillation), [e for e in run.state.log_history if "loss" in e]))
    (plain, plain_logs), (with_shares, logs) = results
    assert not [name for name in plain if not torch.equal(plain[name], with_shares[name])]
    assert not any(name.startswith("grad_share") for entry in plain_logs for name in entry)
    assert [entry["step"] for entry in logs] == [1, *range(2, STEPS + 1, 2)]
    for entry in logs:
        shares = [entry[f"grad_share_{name[5:]}"] for name in PARTS]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert min(shares) > 0


def test_where_they_cannot_be_read(tmp_path):
    for other in ({"grad_cache_chunk": 2}, {"torch_compile": True}):
        with pytest.raises(ValueError, match="neither grad_cache_chunk .* nor torch_compile"):
            R2D2TrainingArguments(str(tmp_path), gradient_shares=True, **other)


def two_processes(number: int) -> dict:
    model = student()
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    return measured(model, slice(5 * number, 5 * number + 5), wrapped)


def test_two_processes_equal_one():
    first, second = in_two_processes(two_processes)
    model = student()
    inputs = batch()
    teacher = teacher_of(model, inputs)
    teacher.feature_guided = None
    with tower_states(model) as states:
        output = model(**inputs, teacher=teacher, hard_negatives=NEGATIVES)
    one = gradient_shares(model.weighted_losses({name: output[name] for name in PARTS[:3]}), states)
    for each in (first, second):
        assert {n: v.item() for n, v in each.items()} == pytest.approx({n: v.item() for n, v in one.items()}, rel=1e-4)
