"""A run that diverges stops at the step where it does, names it, and keeps what was good."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_r2d2.cli import main
from modeling_r2d2.inference.finite import NotFiniteError, is_finite
from modeling_r2d2.jobs.divergence import MOST_SKIPPED, DivergenceCallback, DivergenceGuard
from tests.cli.test_cli import arguments, data  # noqa: F401
from tests.distillation import runs
from tests.processes import in_two_processes


class Poison(TrainerCallback):
    """Puts NaN into one weight, or one gradient, as a step begins."""

    def __init__(self, step: int, name: str, gradient: bool = False, worker: int | None = None):
        self.step, self.name, self.gradient, self.worker = step, name, gradient, worker

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step and not self.gradient and self.worker in (None, args.process_index):
            model.get_parameter(self.name).data.view(-1)[0] = float("nan")


def hook_gradient(model: torch.nn.Module, name: str):
    """The gradient of one parameter becomes infinite, losses stay finite."""
    model.get_parameter(name).register_hook(lambda gradient: gradient * float("inf"))


def finite(folder) -> bool:
    return all(is_finite(value) for value in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("kind", "accumulation", "distilled"),
    [("r2d2", 2, True), ("r2d2", 1, False), ("stock", 1, True), ("stock", 2, False)],
)
def test_weights_of_nan_stop_the_next_step(kind, accumulation, distilled, tmp_path):
    callbacks = [runs.callback()] if distilled else [DivergenceCallback()] if kind == "stock" else []
    name = "vision_projection.weight"
    run = runs.trainer(tmp_path, kind, accumulation, [*callbacks, Poison(4, name)])
    with pytest.raises(NotFiniteError, match=rf"step 5: .*loss, the weight {name}.*checkpoint-3.*learning rate"):
        run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert finite(tmp_path / "checkpoint-3")


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_gradient_is_named_before_clipping_spreads_it(limit, tmp_path):
    run = runs.trainer(tmp_path, "r2d2", callbacks=[], max_grad_norm=limit)
    hook_gradient(run.model, "text_projection.weight")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(NotFiniteError, match=r"step 1: .* the gradient of text_projection\.weight being NaN"):
        run.train()
    assert all(torch.equal(before[name], value) for name, value in run.model.state_dict().items())


@pytest.mark.parametrize("kind", ["r2d2", "stock"])
def test_a_learning_rate_beyond_reason(kind, tmp_path):
    callbacks = [] if kind == "r2d2" else [DivergenceCallback()]
    options = {"learning_rate": 1e30, "warmup_steps": 0, "save_steps": 1, "max_steps": 4}
    run = runs.trainer(tmp_path, kind, callbacks=callbacks, **options)
    with pytest.raises(NotFiniteError, match=r"^step \d: the run has diverged, "):
        run.train()
    assert all(entry["loss"] > 0 for entry in run.state.log_history)  # none of NaN, logged as 0
    assert all(finite(folder) for folder in tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("kind", ["r2d2", "stock"])
def test_the_last_step_is_looked_at_too(kind, tmp_path):
    """No step follows whose loss would show it: weights of 1e30 are finite, and what is computed with them is not."""
    callbacks = [] if kind == "r2d2" else [DivergenceCallback()]
    run = runs.trainer(
        tmp_path, kind, callbacks=callbacks, learning_rate=1e30, warmup_steps=0, save_steps=1, max_steps=1
    )
    with pytest.raises(NotFiniteError, match=r"^step 1: the run has diverged, the weight .* no checkpoint of before"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_gradient_caching(tmp_path):
    run = runs.trainer(tmp_path, "r2d2", 2, [runs.callback(), Poison(1, "vision_projection.weight")])
    run.args.grad_cache_chunk = 2
    with pytest.raises(NotFiniteError, match=r"step 2: .*loss_tgd"):
        run.train()


def test_nothing_is_saved_of_weights_that_are_not_finite(tmp_path):
    run = runs.trainer(tmp_path / "run", "r2d2", callbacks=[])
    run.model.temperature.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the weight temperature"):
        run.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_an_evaluation_of_nan_stops_too(tmp_path):
    run = runs.trainer(tmp_path, "r2d2", callbacks=[], eval_strategy="no")
    run.eval_dataset = runs.Pairs(8)
    run.model.temperature.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match=r"evaluation: eval_loss is nan"):
        run.evaluate()


def test_loss_scaling_may_skip_steps_but_not_for_ever():
    guard, weight = DivergenceGuard(), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("inf")])

    def step(loss: float, scaled: bool = True):
        guard.note({"loss": torch.tensor(loss)})
        guard.check(7, [("w", weight)], None, scaled, None)

    for _ in range(MOST_SKIPPED):
        step(1.0)
    with pytest.raises(NotFiniteError, match="the gradient of w being"):
        step(1.0)
    weight.grad = torch.ones(2)
    step(1.0)  # it counts from 0 again
    weight.grad = torch.tensor([1.0, float("nan")])
    step(1.0)
    with pytest.raises(NotFiniteError, match="step 7: .* loss being"):
        step(float("nan"))
    with pytest.raises(NotFiniteError):
        step(1.0, scaled=False)


def _worker(number: int, folder: str) -> str:
    # on one worker alone, and in the first of two micro-batches, where the other hears nothing of it
    run = runs.trainer(folder, "r2d2", 2, [Poison(1, "temperature", worker=1)], ddp_timeout=60)
    with pytest.raises(NotFiniteError) as caught:
        run.train()
    return str(caught.value)


def test_all_workers_stop_where_one_diverges(tmp_path):
    for note in in_two_processes(_worker, str(tmp_path), launched=True):
        assert note.startswith("step 2: the run has diverged, loss_gcpr, ")
        assert ", the weight temperature (worker 1)" in note


def test_on_the_command_line(data, monkeypatch, capsys):  # noqa: F811
    """One line, a status that is not 0, no model and no card."""
    more = ("--learning-rate", "1e30", "--warmup", "0", "--save-every", "1", "--log-every", "1")
    monkeypatch.setattr("sys.argv", ["r2d2", *arguments(data, *more)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code != 0
    assert "the run has diverged" in error
    assert "Traceback" not in error
    assert not (data / "run" / "model.safetensors").exists()
    assert not (data / "run" / "README.md").exists()
    assert all(finite(folder) for folder in (data / "run").glob("checkpoint-*"))
