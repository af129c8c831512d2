"""How fast a model encodes and ranks here: what a card states as measured."""

from __future__ import annotations

import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from ..inference.folders import read_json_object
from ..inference.loading import load_processor, load_whole

_TEXT = "一只棕色的小狗在草地上追着一个红色的球"


@dataclass(frozen=True)
class Speed:
    """Rates per second, by the model alone (pictures decoded and texts tokenised beforehand); None: cannot do it.

    Args:
        batch: pictures, texts or pairs at a time.
        text_tokens: length of the texts.
        device: where it was measured.
        threads: of torch.
        dtype: of the weights.
        processor: of the machine.
        torch: its version.
    """

    images_per_second: float
    texts_per_second: float
    pairs_per_second: float | None
    batch: int
    text_tokens: int
    device: str
    threads: int
    dtype: str
    processor: str
    torch: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def read(cls, path: str | PathLike) -> Speed:
        """From the JSON file that `r2d2 card` wrote by its --speed-output.

        Raises:
            ValueError: another file; names it.
        """
        try:
            return cls(**read_json_object(Path(path)))
        except TypeError as error:
            raise ValueError(f"{path} holds no speed that `r2d2 card` wrote by --speed-output: {error}") from error


def measure_speed(folder: str | PathLike, device: str = "cpu", batch: int = 16, seconds: float = 1.0) -> Speed:
    """Median rates over `seconds` a kind, after a warm-up, on random pictures and one Chinese caption.

    Raises:
        ValueError: a folder that `AutoModel` does not load as two towers (a classifier, a captioner).
    """
    from .facts import read_facts

    facts = read_facts(folder)
    if facts.task not in ("retrieval", "matching"):
        raise ValueError(f"{folder}: speed is measured of two-tower models, and this is a {facts.architecture}")
    model = load_whole(AutoModel, folder).eval().to(device)
    processor = load_processor(AutoProcessor, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    inputs = processor(images=[Image.fromarray(pixels)], text=[_TEXT], return_tensors="pt").to(device)
    images = inputs["pixel_values"].expand(batch, -1, -1, -1).to(model.dtype).contiguous()
    ids, mask = (inputs[name].expand(batch, -1).contiguous() for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        image_rate = _rate(lambda: model.get_image_features(images), batch, seconds, device)
        text_rate = _rate(lambda: model.get_text_features(ids, mask), batch, seconds, device)
        pair_rate = None
        if getattr(model, "can_rank", False):
            texts = model.get_text_features(ids, mask).last_hidden_state
            seen = model.get_image_features(images).last_hidden_state
            pair_rate = _rate(lambda: model.rank(texts, seen, mask, cls_only=True), batch, seconds, device)
    return Speed(
        images_per_second=round(image_rate, 2),
        texts_per_second=round(text_rate, 2),
        pairs_per_second=None if pair_rate is None else round(pair_rate, 2),
        batch=batch,
        text_tokens=ids.shape[1],
        device=device,
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
        processor=_processor_name(device),
        torch=torch.__version__,
    )


def _rate(call: Callable[[], Any], batch: int, seconds: float, device: str) -> float:
    """Items per second: batch over the median time of a call."""

    def timed() -> float:
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - started

    timed()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        taken.append(timed())
    return batch / statistics.median(taken)


def _processor_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", listed.read_text(), re.MULTILINE) if listed.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


__all__ = ["Speed", "measure_speed"]
