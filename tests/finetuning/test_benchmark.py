"""The fine-tuning benchmark runs, on one part and a model of random weights."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.tiny import tiny_config

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_quick_run_of_lora(tmp_path, monkeypatch, capsys):
    emoji = pytest.importorskip("modeling_r2d2.processing.datasets.emoji")
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    module = importlib.import_module("finetuning")
    monkeypatch.setattr(module, "QUICK_TABLES", tmp_path / "runs")
    tokenizer = build_character_tokenizer([c.name for c in emoji.emoji_concepts()], max_length=16)
    config = tiny_config("resnet", max_text_length=16)
    config.text_config.vocab_size = len(tokenizer)
    R2D2ForPreTraining(config).save_pretrained(tmp_path / "model")
    R2D2Processor.build(tokenizer, image_size=32, max_length=16).save_pretrained(tmp_path / "model")
    options = ["--quick", "--only", "lora", "--model", str(tmp_path / "model"), "--tables", str(tmp_path)]
    try:
        assert module.main(options) == 0
    finally:
        torch.set_num_threads(threads)
        for name in ("finetuning", "common"):
            sys.modules.pop(name, None)
    figures = json.loads((tmp_path / "finetuning.json").read_text(encoding="utf-8"))
    assert len(figures["rows"]) == 12  # two vendors, pre-ranking and two scores, two ways
    assert all(0 <= row["after"] <= 100 for row in figures["rows"])
    assert "240 pairs of 60 pictures" in capsys.readouterr().out
