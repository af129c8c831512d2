"""Gradient caching: chunk by chunk the gradients are those of the undivided step."""

import pytest
import torch

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from modeling_r2d2.training.grad_cache import average_gradients, cached_backward
from tests.distillation.runs import callback, everything, trainer
from tests.processes import in_two_processes
from tests.tiny import tiny_batch, tiny_config

PAIRS = 10
NEGATIVES = HardNegatives(
    torch.tensor([7, 2, 3, 4, 5, 6, 0, 1, 9, 8]), torch.tensor([4, 5, 6, 7, 0, 1, 9, 8, 2, 3]), torch.ones(10).bool()
)
NEGATIVES.valid[3] = False


def batch(masked: bool = True) -> dict:
    result = tiny_batch(pairs=PAIRS, masked=masked)
    result["image_ids"] = torch.tensor([0, 1, 2, 2, 1, 5, 6, 7, 8, 9])
    if masked:
        result["mlm_labels"][:3, 4] = result["input_ids"][:3, 4]  # chunks of unequal numbers of masked tokens
    return result


def model(ranker: bool = True, dropout: float = 0.0, **config) -> R2D2ForPreTraining:
    torch.manual_seed(0)
    return R2D2ForPreTraining(tiny_config(ranker=ranker, dropout=dropout, fgd_prototypes=48, **config)).train()


def teacher_of(student: R2D2ForPreTraining, inputs: dict, pairs: int = PAIRS):
    torch.manual_seed(1)
    state = DistillationState(student, TargetGuidedSettings(queue_size=4), FeatureGuidedSettings(), pairs)
    return state.targets(inputs, 0, student.current_temperature(), 0.4)


def assert_same_gradients(first: R2D2ForPreTraining, second: R2D2ForPreTraining):
    for (name, one), two in zip(first.named_parameters(), second.parameters(), strict=True):
        assert (one.grad is None) == (two.grad is None), name
        if one.grad is not None:
            tolerance = 1e-5 * one.grad.abs().max().item() + 1e-8
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-5, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("chunk", [3, 10, 99])
@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize(
    ("ranker", "masked", "rank_masked"),
    [(True, True, True), (True, True, False), (True, False, True), (False, True, True)],
)
def test_gradients_are_those_of_the_undivided_step(chunk, distilled, ranker, masked, rank_masked):
    if distilled and not masked:
        pytest.skip("feature-guided distillation needs masked texts")
    inputs = batch(masked)
    whole, cached = (model(ranker, rank_masked_texts=rank_masked, fgd_weight=0.5) for _ in range(2))
    teacher = teacher_of(whole, inputs) if distilled else None
    expected = whole(**inputs, teacher=teacher, hard_negatives=NEGATIVES)
    (0.25 * expected.loss).backward()
    actual = cached_backward(cached, inputs, chunk, teacher, NEGATIVES, scale=0.25)
    for name in ("loss", "loss_gcpr", "loss_tgd", "loss_fgr", "loss_mlm", "loss_fgd", "ranking_accuracy"):
        assert (expected.get(name) is None) == (actual.get(name) is None), name
        if expected.get(name) is not None:
            torch.testing.assert_close(actual[name], expected[name].detach(), rtol=1e-5, atol=1e-6)
    assert_same_gradients(whole, cached)


def test_dropout_is_drawn_the_same_both_times():
    """In one chunk the second pass must drop what the first dropped, or the gradient is of another loss."""
    inputs = batch()
    whole, cached = model(dropout=0.3), model(dropout=0.3)
    whole.config.fgr_weight = cached.config.fgr_weight = 0.0  # the ranker's own dropout comes in another order
    whole.config.mlm_weight = cached.config.mlm_weight = 0.0
    torch.manual_seed(5)
    whole(**inputs, hard_negatives=NEGATIVES).loss.backward()
    torch.manual_seed(5)
    cached_backward(cached, inputs, PAIRS, hard_negatives=NEGATIVES)
    assert_same_gradients(whole, cached)


def test_batch_statistics_are_refused_unless_frozen():
    torch.manual_seed(0)
    student = R2D2ForPreTraining(tiny_config("resnet")).train()
    with pytest.raises(ValueError, match="cannot reproduce the batch statistics of vision_model"):
        cached_backward(student, batch(), 4)
    student.vision_model.eval()
    assert cached_backward(student, batch(), 4).loss.isfinite()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_with_chunks_equals_trainer_without(accumulation, tmp_path, monkeypatch):
    from modeling_r2d2.model import pretraining_r2d2

    monkeypatch.setattr(pretraining_r2d2, "draw_hard_negatives", pretraining_r2d2.hardest_negatives)
    results = []
    for chunk in (0, 3):
        distillation = callback()
        run = trainer(
            tmp_path / str(chunk),
            "r2d2",
            accumulation,
            [distillation],
            grad_cache_chunk=chunk,
            max_steps=4,
            optim="sgd",
            learning_rate=0.05,
            save_strategy="no",
        )
        torch.manual_seed(0)
        run.model = run.model_wrapped = R2D2ForPreTraining(tiny_config(fgd_prototypes=48))
        run.train()
        results.append((everything(run, distillation), [e for e in run.state.log_history if "loss" in e]))
    (whole, whole_logs), (chunked, chunked_logs) = results
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for one, two in zip(whole_logs, chunked_logs, strict=True):
        for name in ("loss", "loss_tgd", "loss_fgr", "loss_mlm", "loss_fgd", "teacher_agreement", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-3), name


def two_processes(number: int) -> dict:
    rows = slice(5 * number, 5 * number + 5)
    results = {}
    for rank_masked in (True, False):
        student = model(rank_masked_texts=rank_masked)
        inputs = {name: value[rows] for name, value in batch().items()}
        teacher = teacher_of(student, inputs)
        teacher.feature_guided = None  # its patches are drawn by worker
        negatives = HardNegatives(*(part[rows] for part in NEGATIVES))
        cached_backward(student, inputs, 2, teacher, negatives)
        average_gradients(student)
        results[rank_masked] = {name: p.grad for name, p in student.named_parameters()}
    return results


def test_two_processes_in_chunks_equal_one_undivided():
    workers = in_two_processes(two_processes)
    for rank_masked in (True, False):
        whole = model(rank_masked_texts=rank_masked)
        teacher = teacher_of(whole, batch())
        teacher.feature_guided = None
        whole(**batch(), teacher=teacher, hard_negatives=NEGATIVES).loss.backward()
        for number in (0, 1):
            gradients = workers[number][rank_masked]
            for name, parameter in whole.named_parameters():
                if name.startswith("feature_heads."):
                    continue
                scale = parameter.grad.abs().max().item()
                torch.testing.assert_close(
                    gradients[name], parameter.grad, rtol=1e-5, atol=1e-5 * scale + 1e-7, msg=f"{name} on {number}"
                )
