"""Runs on two gloo processes that the command line starts: tar shards, adapters; one of them writes."""

import json
import os
import tarfile
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.cli.test_cli import TEXTS
from tests.processes import in_two_processes
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A model, pairs as JSON lines and as four tar shards, and what two processes made of them."""
    root = tmp_path_factory.mktemp("two")
    lines = []
    for number, text in enumerate(TEXTS):
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 99)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text(text, encoding="utf-8")
        lines.append(json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False))
    (root / "pairs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for shard in range(4):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                for suffix in ("png", "txt"):
                    archive.add(root / f"{number}.{suffix}", f"{number}.{suffix}")
    tokenizer = build_character_tokenizer(TEXTS, max_length=16)
    config = tiny_config("clip", max_text_length=16)
    config.text_config.vocab_size = len(tokenizer)
    R2D2ForPreTraining(config).save_pretrained(root / "base")
    R2D2Processor.build(tokenizer, image_size=32, max_length=16).save_pretrained(root / "base")
    return root, in_two_processes(_worker, str(root), launched=True)


def _worker(number: int, folder: str) -> dict:
    os.chdir(folder)
    from typer.testing import CliRunner

    from modeling_r2d2.cli import app
    from modeling_r2d2.finetuning import adapters

    writers = []
    save = adapters.save_safetensors
    adapters.save_safetensors = lambda tensors, path: (writers.append(number), save(tensors, path))
    stream = "pretrain --data shard-*.tar --model base --output stream --steps 3 --batch-size 2 --workers 0"
    lora = (
        "finetune retrieval --model base --data pairs.jsonl --output lora --preset small --epochs 2 --batch-size 2 "
        "--workers 0"
    )
    found = {}
    for name, command in (("stream", stream + " --save-every 2"), ("lora", lora)):
        result = CliRunner().invoke(app, command.split())
        found[name] = [result.exit_code, repr(result.exception)]
        dist.barrier()
    return {**found, "writers": writers}


@pytest.mark.parametrize("name", ["stream", "lora"])
def test_both_end_well_and_one_writes(runs, name):
    root, (first, second) = runs
    assert first[name] == second[name] == [0, "None"]
    assert (root / name / "model.safetensors").is_file()
    assert not [path for path in (root / name).rglob("*") if ".r2d2-partial" in path.name]
    assert second["writers"] == []
    assert json.loads((root / name / "trainer_state.json").read_text())["global_step"] == (3 if name == "stream" else 4)
    last = max((root / name).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert {"rng_state_0.pth", "rng_state_1.pth", "complete.json"} <= {path.name for path in last.iterdir()}
    if name == "lora":
        assert first["writers"]
        assert (last / "extra_weights.safetensors").is_file()
