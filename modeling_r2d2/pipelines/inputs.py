"""What both pipelines do with their inputs: read pictures of every mode, cut texts to the model's length.

This file travels with a saved pipeline, so it imports only numpy, PIL and transformers.
"""

import os
import warnings

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.utils import logging

logger = logging.get_logger(__name__)
_reported: set[int] = set()


def read_picture(source: str | os.PathLike | Image.Image, timeout: float | None = None) -> Image.Image:
    """A picture as 8-bit RGB, turned upright as its EXIF data say: what transformers' `load_image` takes (PIL
    image, path, URL, base64), and 16-bit pictures rescaled instead of clipped.

    Raises:
        ValueError: a file that is missing, truncated, no picture, or has too many pixels; names it.
        TypeError: neither a picture nor a string.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, (str, Image.Image)):
        raise TypeError(f"a picture must be a PIL image, a path or a URL, not {type(source).__name__}")
    name = _name(source)
    try:
        with warnings.catch_warnings():
            # PIL warns of pictures of that size, and refuses only those of twice as many pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(source) if isinstance(source, str) and os.path.isfile(source) else source
            if isinstance(picture, Image.Image) and picture.mode.startswith(("I", "F")):
                picture = _eight_bits(picture)
            return load_image(picture, timeout=timeout)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} has too many pixels (a decompression bomb?): {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three on broken files
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error


def text_limit(tokenizer, config) -> int:
    """Tokens that a text may have: the least of what tokenizer, model and position table say."""
    return min(
        tokenizer.model_max_length,
        getattr(config, "max_text_length", tokenizer.model_max_length),
        config.text_config.max_position_embeddings,
    )


def unknown_parts(tokenizer, texts: list[str], limit: int | None = None) -> list[str]:
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


def tokenize(tokenizer, config, texts: list[str]):
    """Token tensors of `texts`, padded to the longest and cut to `text_limit`, which is reported by a warning."""
    limit = text_limit(tokenizer, config)
    lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
    if max(lengths) > limit:
        _report_cut(texts[lengths.index(max(lengths))], max(lengths), limit)
    return tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")


def _report_cut(text: str, tokens: int, limit: int):
    if limit not in _reported:  # not warning_once: it compares whole messages, and this one names the text
        _reported.add(limit)
        logger.warning(
            f"a text of {tokens} tokens was cut to the {limit} that the model takes (shown once): {text[:40]!r}…"
        )


def _name(source: str | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"a {source.mode} picture"
    return source if len(source) <= 200 else f"{source[:60]}…"


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Pictures of 16-bit integers (65535 becomes 255), 32-bit integers or floats (0..1, else stretched) as 8-bit."""
    values = np.asarray(picture).astype(np.float64)
    low, high = values.min(), values.max()
    if picture.mode == "F":
        low, high = (0, 1) if low >= 0 and high <= 1 else (0, 255) if low >= 0 and high <= 255 else (low, high)
    elif low >= 0 and high <= 65535:
        low, high = 0, 65535
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(np.nan_to_num(scaled)).clip(0, 255).astype(np.uint8))
