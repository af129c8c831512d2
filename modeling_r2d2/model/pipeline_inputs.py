"""What both pipelines do with their inputs: read pictures of every mode, cut texts to the model's length.

This file travels with a saved pipeline, so it imports only PIL, huggingface_hub, torch, transformers and flat
siblings.
"""

import base64
import os
from typing import Any

import torch
from huggingface_hub.utils import httpx  # httpx or httpx2, whichever is installed with it; as transformers does
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .configuration_r2d2 import text_positions
from .images_r2d2 import MAX_FILE_BYTES, open_image

_SMALLEST_IMAGE = 26  # bytes: a GIF of one pixel takes more; a word may be good base64, and is none of a picture
logger = logging.get_logger(__name__)
_reported: set[int] = set()


def read_image(source: str | os.PathLike | Image.Image, timeout: float | None = None, **opening: Any) -> Image.Image:
    """A picture as upright 8-bit RGB, by the rules and with the options of `open_image`: of a PIL image, path, URL or
    base64 string, which is what transformers' `load_image` takes (that one opens every format that PIL knows).

    Raises:
        ValueError: a picture that is missing, truncated, none, or has too many pixels; names it.
        TypeError: neither a picture nor a string.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"a {source.mode} picture"
        return open_image(source, name=name, **opening)
    if not isinstance(source, str):
        raise TypeError(f"a picture must be a PIL image, a path or a URL, not {type(source).__name__}")
    name = source if len(source) <= 200 else f"{source[:60]}…"
    data = None
    if source.startswith(("http://", "https://")):
        data = _downloaded(source, timeout)
    elif not _is_file(source):
        data = _from_base64(source)
    return open_image(source if data is None else data, name=name, **opening)


def text_limit(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Tokens that a text may have: the least of what tokenizer, model and position table say."""
    return min(
        tokenizer.model_max_length,
        getattr(config, "max_text_length", tokenizer.model_max_length),
        text_positions(config.text_config),
    )


def unknown_parts(tokenizer: PreTrainedTokenizerBase, texts: list[str], limit: int | None = None) -> list[str]:
    """What of the texts (of their first `limit` tokens) the vocabulary lacks, each part once: it is read as [UNK].
    Nothing of a tokenizer that does not tell where its tokens come from (one written in Python)."""
    if not tokenizer.is_fast:
        return []
    encoded = tokenizer(texts, truncation=False, return_offsets_mapping=True, verbose=False)
    parts = (
        text[start:end]
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for token, (start, end) in zip(ids[:limit], offsets[:limit], strict=True)
        if token == tokenizer.unk_token_id
    )
    return list(dict.fromkeys(parts))


def tokenize(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, texts: list[str]) -> BatchEncoding:
    """Token tensors of `texts`, cut to `text_limit`, which is reported by a warning, and padded to the longest, or to
    that limit where the model reads its padding."""
    limit = text_limit(tokenizer, config)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    if max(lengths) > limit:
        _report_cut(texts[lengths.index(max(lengths))], max(lengths), limit)
    attend_padding = getattr(config, "attend_padding", False)
    padding = "max_length" if attend_padding else True
    options = {"truncation": True, "max_length": limit, "return_attention_mask": True, "return_tensors": "pt"}
    tokens = tokenizer(texts, padding=padding, **options)
    if attend_padding:
        tokens["attention_mask"] = torch.ones_like(tokens["input_ids"])
    return tokens


def _report_cut(text: str, tokens: int, limit: int):
    if limit not in _reported:  # not warning_once: it compares whole messages, and this one names the text
        _reported.add(limit)
        logger.warning(
            f"a text of {tokens} tokens was cut to the {limit} that the model takes (shown once): {text[:40]!r}…"
        )


def refuse_not_finite(model: PreTrainedModel, scores: Tensor) -> None:
    """Scores of a model, a tensor of any shape, that are NaN or infinite.

    Raises:
        ValueError: how many are; `modeling_r2d2.inference.finite` says it of everything that does not travel.
    """
    if not bool(scores.isfinite().all()):
        bad = int((~scores.isfinite()).sum())
        raise ValueError(
            f"{model.config.name_or_path}: {bad} of {scores.numel()} scores are not finite (NaN or infinity). The "
            "model's weights are damaged, or its numbers overflow in this precision: try float32"
        )


def _downloaded(url: str, timeout: float | None) -> bytes:
    """What lies at an address, of at most `MAX_FILE_BYTES`."""
    try:
        data = bytearray()
        with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_FILE_BYTES:
                    raise ValueError(f"{url}: larger than {MAX_FILE_BYTES} bytes")
        return bytes(data)
    except httpx.HTTPError as error:
        raise ValueError(f"{url}: cannot be downloaded: {error}") from error


def _is_file(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except ValueError:  # a NUL character
        return False


def _from_base64(text: str) -> bytes | None:
    """The bytes of a base64 string or a data URL; None of what is neither, such as a file's name."""
    text = text.partition(",")[2] if text.startswith("data:image/") else text
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None
    return data if len(data) >= _SMALLEST_IMAGE else None
