"""What `--help` shows, and that it and completion are light: torch and transformers take seconds to import."""

import os
import subprocess
import sys

import pytest
import typer

from modeling_r2d2.cli import app

#: Runs the command, then says on stderr what it has cost.
_RUN = """
import atexit, resource, sys

@atexit.register
def report():
    used = resource.getrusage(resource.RUSAGE_SELF)
    heavy = {"torch", "transformers", "numpy", "huggingface_hub"} & set(sys.modules)
    print("used", used.ru_utime + used.ru_stime, *sorted(heavy), file=sys.stderr)

from modeling_r2d2.cli import main
sys.argv = ["r2d2", *sys.argv[1:]]
main()
"""


def verbs(command=None, names=()):
    command = command or typer.main.get_command(app)
    yield list(names)
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*names, name))


def run(*words, **environment):
    """Stdout of `r2d2 …`, which has cost at most a second and imported nothing heavy."""
    command = [sys.executable, "-c", _RUN, *words]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    _, seconds, *heavy = result.stderr.splitlines()[-1].split()
    assert not heavy, words
    assert float(seconds) <= 1.0, words
    return result.stdout


@pytest.mark.parametrize("words", list(verbs()), ids=" ".join)
def test_help_is_light(words):
    assert "--help" in run(*words, "--help")


def test_completion_is_light():
    assert "pretrain" in run(_R2D2_COMPLETE="complete_bash", COMP_WORDS="r2d2 pre", COMP_CWORD="1")
    shown = run(_R2D2_COMPLETE="complete_bash", COMP_WORDS="r2d2 pretrain --pre", COMP_CWORD="2")
    assert "--preset" in shown
