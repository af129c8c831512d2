"""The card of a data set of image-text pairs, in English or Chinese: counted, measured, and what its owner says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard, DatasetCardData

from .checking import SIZES, require_valid
from .licenses import license_fields
from .wording import LANGUAGES, UNKNOWN, Language

if TYPE_CHECKING:
    from ..processing.datasets.check import DataCheck

_TEMPLATES = Path(__file__).parent
_BOUNDS = tuple(10**exponent for exponent in range(3, 13))


def dataset_card(
    found: DataCheck,
    *,
    name: str,
    path: str,
    language: Language = "en",
    license: str | None = None,
    image_license: str | None = None,
    origin: str | None = None,
    reading: dict[str, Any] | None = None,
    limits: Sequence[str] = (),
) -> DatasetCard:
    """The card of pairs that `check_pairs` has read; what nobody stated is said to be unknown.

    Args:
        name: how the card calls the set.
        path: file or folder, as the card's code reads it.
        language: of the text. The header's `language` is that of the captions: Chinese.
        license: of the set (its texts).
        image_license: of the pictures; None: unknown, whatever `license` says.
        origin: where pictures and texts come from.
        reading: options of `load_pairs` (format, split).

    Raises:
        ValueError: no whole pair, or another language.
        CardError: what was given makes an invalid card.
    """
    if language not in LANGUAGES:
        raise ValueError(f"cards are written in {' or '.join(LANGUAGES)}, not in {language!r}")
    if not found.pairs:
        raise ValueError(f"{path} holds no whole pair: there is nothing to describe")
    header = DatasetCardData(
        language="zh",
        **license_fields(license),
        pretty_name=name,
        task_categories=["zero-shot-image-classification", "image-to-text", "text-to-image"],
        size_categories=[size_category(found.pairs)],
        tags=["image-text-retrieval", "chinese"],
    )
    options = {key: value for key, value in (reading or {}).items() if value is not None}
    card = DatasetCard.from_template(
        header,
        template_path=str(_TEMPLATES / f"dataset_card_{language}.md.jinja"),
        name=name,
        path=path,
        options="".join(f", {key}={json.dumps(value, ensure_ascii=False)}" for key, value in options.items()),
        found=found,
        unknown=UNKNOWN[language],
        license=license,
        image_license=image_license,
        origin=origin,
        limits=limits,
    )
    require_valid(str(card), "dataset", name=f"the card of {path}")
    return card


def size_category(pairs: int) -> str:
    """The Hub's size category of a number of rows: 10K<n<100K."""
    return SIZES[sum(pairs >= bound for bound in _BOUNDS)]


__all__ = ["dataset_card", "size_category"]
