"""The options of a verb are the fields of its settings."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import typer
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.cli.commands import add_verb
from modeling_r2d2.cli.finetune import FinetuningRun
from modeling_r2d2.cli.options import Checked
from modeling_r2d2.cli.pretrain import PretrainingRun
from modeling_r2d2.processing.files.settings import setting
from modeling_r2d2.training.arguments import R2D2TrainingArguments


@dataclass(kw_only=True)
class Shared(Checked):
    panel: ClassVar[str] = "Shared"
    rates: dict[str, float] = setting({}, "Factors.", "--rate")
    quick: bool = setting(False, "Be quick.")


@dataclass(kw_only=True)
class Settings(Shared):
    files: list[Path] = setting(help="Files.", argument=True)
    max_steps: int = setting(3, "The number of steps.", "--steps", bounds={"least": 1, "whole": True})
    size: Literal["small", "large"] | None = setting(None, "The size.")
    names: tuple[str, ...] = setting(("a",), "A name. It can be repeated.", "--name")
    head: bool | None = setting(None, "Take the head.")
    augment: bool = setting(True, "Augment.")
    inner: Any = None


@pytest.fixture
def run():
    seen = []

    def show(settings: Settings) -> None:
        """Shows.

        What it shows.
        """
        seen.append(settings)

    verbs = typer.Typer(pretty_exceptions_enable=False)
    add_verb(verbs, "show", show, "show FILE")

    def invoke(*words):
        result = CliRunner().invoke(verbs, list(words))
        return seen.pop() if seen else result

    return invoke


def test_defaults_and_types(run):
    assert run("a.png") == Settings(files=[Path("a.png")])
    words = "a b --steps 5 --size large --names x --name y --no-head --no-augment --rate t=0.5 --rates a=b=2 --quick"
    assert run(*words.split()) == Settings(
        files=[Path("a"), Path("b")],
        max_steps=5,
        size="large",
        names=("x", "y"),
        head=False,
        augment=False,
        rates={"t": 0.5, "a=b": 2.0},
        quick=True,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --max-steps 0", "max_steps is 0; it must be a whole number at least 1"),
        ("a --rate t", "--rate t: write a name and a number"),
        ("a --size huge", "small"),
        ("a --no-quick", "No such option"),
        ("a --inner 3", "No such option"),
        ("", "Missing argument"),
    ],
)
def test_refused(run, words, message):
    result = run(*words.split())
    assert result.exit_code != 0
    assert message in f"{result.output} {result.exception}"


def test_help_names_panels_ranges_and_defaults_uncut(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    shown = " ".join(run("--help").output.replace("│", " ").split())
    for part in ("What it shows.", "--max-steps, --steps", "(at least 1)", "[default: 3]", "Shared", "show FILE"):
        assert part in shown
    assert shown.index("--size") < shown.index("--rates")


@pytest.mark.parametrize("kind", [PretrainingRun, FinetuningRun])
def test_what_transformers_has_goes_by_its_name(kind):
    """No setting of a run calls something otherwise that `TrainingArguments` have."""
    theirs = {each.name for each in fields(R2D2TrainingArguments)}
    assert {"learning_rate", "per_device_train_batch_size", "seed", "bf16"} <= theirs & {x.name for x in fields(kind)}
    others = {"steps", "batch_size", "workers", "epochs", "log_every", "save_every", "warmup", "gradient_accumulation"}
    assert not others & {each.name for each in fields(kind)}


def test_every_option_is_explained_in_sentences():
    def walk(command):
        for parameter in command.params:
            text = parameter.help or ""
            assert text[:1].isupper() or text[:1] in "-'\"", (command.name, parameter.name, text)
            assert text[-1:] in ".…", (command.name, parameter.name, text)
        for child in getattr(command, "commands", {}).values():
            walk(child)

    walk(typer.main.get_command(app))
