"""Ranking that begins later: the model without it, and the callback in both Trainers, alone and on two processes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.training.curriculum import RankingCurriculumCallback
from modeling_r2d2.training.grad_cache import cached_backward
from modeling_r2d2.training.recipes import BriVLRecipe, Recipe, find_recipe
from tests.distillation.runs import STEPS, callback, everything, trainer
from tests.processes import in_two_processes
from tests.tiny import tiny_batch, tiny_config
from tests.training.test_grad_cache import PAIRS, assert_same_gradients, batch, model, teacher_of

KINDS = ("stock", "r2d2")
RANKER = ("text_image_encoder", "image_text_encoder", "text_image_match_head", "image_text_match_head")


def test_without_ranking_nothing_of_it_is_computed():
    student, inputs = model(), tiny_batch()
    calls = []
    for name in (*RANKER, "mlm_head"):
        getattr(student, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    student.text_model.register_forward_hook(lambda *_: calls.append(len(_[2].last_hidden_state)))
    student.ranking_active = False
    outputs = student(**inputs)
    assert calls == [6]  # whole texts alone
    assert outputs.loss == outputs.loss_gcpr
    assert outputs.loss_fgr is outputs.loss_mlm is outputs.ranking_accuracy is None
    outputs.loss.backward()
    assert all(p.grad is None for name, p in student.named_parameters() if name.startswith(RANKER))
    assert student.text_model.embeddings.word_embeddings.weight.grad is not None  # tied with the MLM head
    assert student.eval()(**inputs).loss_fgr > 0  # evaluation has it


@pytest.mark.parametrize("distilled", [False, True])
def test_gradient_caching_without_ranking(distilled):
    inputs, whole, cached = batch(), model(), model()
    whole.ranking_active = cached.ranking_active = False
    teacher = teacher_of(whole, inputs, PAIRS) if distilled else None
    expected = whole(**inputs, teacher=teacher)
    expected.loss.backward()
    actual = cached_backward(cached, inputs, 3, teacher)
    torch.testing.assert_close(actual.loss, expected.loss.detach(), rtol=1e-5, atol=1e-6)
    assert actual.loss_fgr is None
    assert_same_gradients(whole, cached)


class Weights(TrainerCallback):
    """One weight of the ranker after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(model.text_image_match_head.weight.detach().clone())


@pytest.mark.parametrize("kind", KINDS)
def test_ranking_begins_at_a_share_of_the_run(kind, tmp_path):
    weights = Weights()
    run = trainer(tmp_path, kind, callbacks=[RankingCurriculumCallback(0.3), callback(), weights])
    before = run.model.text_image_match_head.weight.detach().clone()
    run.train()
    ranked = ["loss_fgr" in entry for entry in run.state.log_history if "loss" in entry]
    assert ranked == [step >= 2 for step in range(STEPS)]  # 0.3 of eight steps are 2.4
    moved = [not torch.equal(each, before) for each in weights.seen]
    assert moved == ranked
    assert run.model.ranking_active


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_resumed_equals_uninterrupted(kind, share, tmp_path):
    """From a checkpoint at step 3: after ranking began, and before it."""
    whole, part = callback(), callback()
    run = trainer(tmp_path / "whole", kind, callbacks=[RankingCurriculumCallback(share), whole])
    run.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    resumed = trainer(tmp_path / "part", kind, callbacks=[RankingCurriculumCallback(share), part])
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    first, second = everything(run, whole), everything(resumed, part)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


class Sharpness(TrainerCallback):
    """β of every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(model.negative_sharpness)


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_become_hard_over_a_share_of_the_steps_that_rank(kind, tmp_path):
    sharpness = Sharpness()
    curriculum = RankingCurriculumCallback(rank_from=0.25, negative_ramp=0.5)
    run = trainer(tmp_path, kind, callbacks=[curriculum, callback(), sharpness])
    run.train()
    # two of eight steps without ranking; three of the other six from 0 to 1
    assert sharpness.seen == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    assert run.model.negative_sharpness == 1


@pytest.mark.parametrize("sharpness", [0.0, 0.4, 1.0])
def test_negatives_are_drawn_by_the_softmax_at_that_sharpness(sharpness):
    """Frequencies of five thousand draws against the softmax written out."""
    student = model().train()
    student.negative_sharpness = sharpness
    logits = 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    positives = torch.eye(4, 6, dtype=torch.bool)
    torch.manual_seed(0)
    count = 5000
    drawn = [student.pick_negatives(logits, -logits, positives) for _ in range(count)]
    for name, scores in (("text_index", logits), ("image_index", -logits)):
        weights = np.exp(sharpness * scores.double().numpy()) * ~positives.numpy()
        expected = weights / weights.sum(axis=1, keepdims=True)
        found = torch.stack([nn.functional.one_hot(getattr(each, name), 6) for each in drawn]).double().mean(0).numpy()
        assert np.abs(found - expected).max() < 4 * 0.5 / count**0.5
    hardest = student.eval().pick_negatives(logits, -logits, positives)
    assert hardest.text_index.tolist() == logits.masked_fill(positives, -torch.inf).argmax(1).tolist()


def _worker(number: int, folder: str) -> list[dict]:
    found = []
    for kind, arguments in (("stock", {}), ("r2d2", {}), ("r2d2", {"grad_cache_chunk": 2})):
        output = Path(folder) / f"{kind}{len(arguments)}"
        run = trainer(
            output, kind, callbacks=[RankingCurriculumCallback(0.5)], max_steps=4, save_strategy="no", **arguments
        )
        run.train()
        # the stock Trainer logs no parts, but MLM alone begins at ln 99
        ranked = [entry["loss"] > 5.5 for entry in run.state.log_history if "loss" in entry]
        found.append({"ranked": ranked, "weights": dict(run.model.state_dict())})
    return found


def test_two_processes(tmp_path):
    """Weights without gradient stop nobody, and both processes end with the same ones."""
    for first, second in zip(*in_two_processes(_worker, str(tmp_path), launched=True), strict=True):
        assert first["ranked"] == [False, False, True, True]
        assert first["weights"].keys() == second["weights"].keys()
        assert all(torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


def test_recipes():
    recipe = find_recipe("r2d2").adapted(1000, distil=False, rank_from=0.3)
    assert str(recipe) == "GCPR + FGR, ranking from 0.3 of the run on"
    [begins] = recipe.callbacks()
    assert (begins.rank_from, begins.negative_ramp) == (0.3, 0.5)
    assert Recipe().rank_from == 0
    for recipe in (find_recipe("clip"), BriVLRecipe()):
        with pytest.raises(ValueError, match="no ranking that could begin later"):
            recipe.adapted(1000, rank_from=0.3)
        with pytest.raises(ValueError, match="no ranking, whose negatives"):
            recipe.adapted(1000, negative_ramp=0.3)


def test_a_model_without_ranker(tmp_path):
    run = trainer(tmp_path, callbacks=[RankingCurriculumCallback(0.3)])
    run.model = run.model_wrapped = R2D2ForPreTraining(tiny_config(ranker=False))
    with pytest.raises(ValueError, match="this model has no ranker"):
        run.train()
