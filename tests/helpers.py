"""A tiny processor and pictures that the tests of processor, pipelines and evaluation share."""

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer

from modeling_r2d2 import R2D2Model, R2D2Processor
from tests.tiny import TEXT, tiny_config

CHARACTERS = "一张的图片只猫狗马鱼红黄蓝白黑大小在跑睡车船山水火木天地人花草鸟两条个很"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_processor(max_length: int = 16, image_size: int = 32) -> R2D2Processor:
    """Of the size of `tiny_config`: one token per character, Latin letters and digits too."""
    letters = [mark + character for character in "abcxyz123" for mark in ("", "##")]
    vocabulary = [*SPECIAL_TOKENS, *CHARACTERS, *letters]
    assert len(set(vocabulary)) == len(vocabulary) <= TEXT["vocab_size"]
    tokenizer = BertTokenizer(vocab={token: number for number, token in enumerate(vocabulary)})
    return R2D2Processor.build(tokenizer, image_size=image_size, max_length=max_length)


def tiny_model(tower: str = "clip", ranker: bool = True, spread: float = 5.0, **kwargs) -> R2D2Model:
    """In evaluation mode, its weights scaled by `spread`, so that random weights give scores that differ."""
    model = R2D2Model(tiny_config(tower, ranker, max_text_length=16, **kwargs)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(spread)
    return model


def tiny_image(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    """A picture of coarse random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def save_tiny_model(folder: Path) -> Path:
    """The same model in every call, with its processor."""
    torch.manual_seed(0)
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def save_pairs(root: Path) -> Path:
    """`pictures/` with four pictures, and `pairs.jsonl` with a caption of each."""
    (root / "pictures").mkdir()
    lines = []
    for number, text in enumerate("猫狗马鱼"):
        tiny_image(number).save(root / "pictures" / f"{number}.png")
        lines.append(json.dumps({"image": f"pictures/{number}.png", "text": text}))
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root / "pairs.jsonl"


def in_a_child(action: Callable[[], Any]) -> int:
    """Runs `action` in a process of its own, forked, which is much quicker than a new one; its number.

    Of one thread: the workers of this process do not exist there.
    """
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)
            with contextlib.suppress(ImportError):
                import faiss

                faiss.omp_set_num_threads(1)
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def die(*_: Any, **__: Any) -> None:
    """As a process dies that is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def killed(action: Callable[[], Any]) -> bool:
    """Whether `action`, in a process of its own, was killed by `die`."""
    return os.waitpid(in_a_child(action), 0)[1] == signal.SIGKILL
