"""Runs on two gloo processes that the command line starts: tar shards, adapters; one of them writes."""

import json
import os
import socket
import tarfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from tests.cli.test_cli import TEXTS
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, args=(port, str(root)), nprocs=2)
    return root


def _worker(number: int, port: int, folder: str):
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(
        RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
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
    Path(f"{number}.json").write_text(json.dumps({**found, "writers": writers}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["stream", "lora"])
def test_both_end_well_and_one_writes(runs, name):
    first, second = (json.loads((runs / f"{number}.json").read_text()) for number in (0, 1))
    assert first[name] == second[name] == [0, "None"]
    assert (runs / name / "model.safetensors").is_file()
    assert not [path for path in (runs / name).rglob("*") if ".r2d2-partial" in path.name]
    assert second["writers"] == []
    assert json.loads((runs / name / "trainer_state.json").read_text())["global_step"] == (3 if name == "stream" else 4)
    last = max((runs / name).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    assert {"rng_state_0.pth", "rng_state_1.pth", "complete.json"} <= {path.name for path in last.iterdir()}
    if name == "lora":
        assert first["writers"]
        assert (last / "extra_weights.safetensors").is_file()
