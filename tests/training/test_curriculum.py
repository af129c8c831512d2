"""Ranking that begins later: the model without it, and the callback in both Trainers, alone and on two processes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.training.curriculum import RankFromCallback
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
    run = trainer(tmp_path, kind, callbacks=[RankFromCallback(0.3), callback(), weights])
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
    run = trainer(tmp_path / "whole", kind, callbacks=[RankFromCallback(share), whole])
    run.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    resumed = trainer(tmp_path / "part", kind, callbacks=[RankFromCallback(share), part])
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    first, second = everything(run, whole), everything(resumed, part)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def _worker(number: int, folder: str) -> list[dict]:
    found = []
    for kind, arguments in (("stock", {}), ("r2d2", {}), ("r2d2", {"grad_cache_chunk": 2})):
        output = Path(folder) / f"{kind}{len(arguments)}"
        run = trainer(output, kind, callbacks=[RankFromCallback(0.5)], max_steps=4, save_strategy="no", **arguments)
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
    assert str(recipe) == "GCPR + FGR + MLM, ranking from 0.3 of the run on"
    [begins] = recipe.callbacks()
    assert begins.share == 0.3
    assert Recipe().rank_from == 0
    for recipe in (find_recipe("clip"), BriVLRecipe()):
        with pytest.raises(ValueError, match="no ranking that could begin later"):
            recipe.adapted(1000, rank_from=0.3)


def test_a_model_without_ranker(tmp_path):
    run = trainer(tmp_path, callbacks=[RankFromCallback(0.3)])
    run.model = run.model_wrapped = R2D2ForPreTraining(tiny_config(ranker=False))
    with pytest.raises(ValueError, match="this model has no ranker"):
        run.train()
