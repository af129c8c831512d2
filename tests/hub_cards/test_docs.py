"""The guides run as they are printed, with a tiny model, against a hub on this machine."""

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.hub_cards.checking import code_blocks, load_card
from tests.helpers import tiny_image

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["publish.md", "publish.zh.md"])
def test_guide(name, folders, tmp_path, monkeypatch, online):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    shutil.copytree(folders["pretrained"], "runs/mine")
    for place, text in enumerate("猫狗马"):
        tiny_image(place).save(f"{place}.png")
        with open("test.jsonl", "a", encoding="utf-8") as file:
            file.write(f'{{"image": "{place}.png", "text": "{text}"}}\n')
    verbs, scope = [], {}
    for language, block in code_blocks((DOCS / name).read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, name, "exec"), scope)
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "r2d2"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (line, result.output, result.exception)
            verbs.append(arguments[0])
    assert verbs == ["evaluate", "card", "push", "push", "data"]
    assert scope["card"].data.language == "zh"
    assert "README.md" in online.repos["owner/name"]
    assert "evaluation/retrieval-my-test-set.json" in online.repos["owner/name"]
    assert online.private == {"owner/name": True}
    card = load_card("runs/mine/README.md")
    assert card.data.license == "apache-2.0"
    assert {result.dataset_name for result in card.data.eval_results} == {"My test set"}
    shutil.copy("DATA.md", "README.md")
    assert load_card("README.md", "dataset").data.license == "cc-by-4.0"
