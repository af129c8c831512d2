"""The sets of the package by name, wherever a file or a folder of pairs may stand.

| name | what |
|---|---|
| `emoji:google,apple` | the 300 concepts of the demo in the drawings of these vendors |
| `emoji:samsung/train`, `/calibration` | without the pictures that the demo keeps for calibration, or these alone |
| `scenes:google,apple/train`, `/validation`, `/test` | scenes of emoji, see `scenes` |
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from .emoji import DemoPairs, EmojiPairs
from .scenes import SPLITS, ScenePairs, Split

_NAME = re.compile(r"(?P<kind>emoji|scenes):(?P<vendors>[^/]*)(/(?P<split>.*))?")
#: Splits of the emoji, as `EmojiPairs` calls them.
_EMOJI_SPLITS: dict[str | None, Literal["include", "exclude", "only"]] = {
    None: "include",
    "train": "exclude",
    "calibration": "only",
}


def named_set(source: Any) -> str | None:
    """The name, where a source is one of these sets; None where it is files.

    Raises:
        ValueError: one of several sources is such a set.
    """
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return text if isinstance(text, str) and _NAME.fullmatch(text) else None
    if isinstance(source, Sequence) and (names := [name for item in source if (name := named_set(item))]):
        if len(source) > 1:
            raise ValueError(f"{names[0]} is a set by itself: read it alone (several vendors: emoji:google,apple)")
        return names[0]
    return None


def load_named(name: str, split: str | None = None) -> DemoPairs:
    """The set of a name.

    Args:
        split: in place of the name's own ending.

    Raises:
        ImportError: the packages of `[demo]` are not installed.
        ValueError: an unknown vendor or split; scenes without a split, or two different ones.
    """
    parts = _NAME.fullmatch(name)
    assert parts is not None  # as `named_set` says
    kind, ending = parts["kind"], parts["split"]
    if None not in (split, ending) and split != ending:
        raise ValueError(f"{name} is one split, and {split!r} another: name one")
    split = ending if split is None else split
    splits: Sequence[str | None] = SPLITS if kind == "scenes" else [*_EMOJI_SPLITS]
    vendors = [vendor for vendor in parts["vendors"].split(",") if vendor]
    DemoPairs.require_vendors(vendors)
    if split not in splits:
        there = ", ".join(each for each in splits if each)
        what = "name one, as" if split is None else f"no {split!r}; name one as"
        raise ValueError(f"{name} has the splits {there}: {what} {kind}:{parts['vendors']}/{there.split(',')[0]}")
    if kind == "scenes":
        return ScenePairs(vendors, cast(Split, split))
    return EmojiPairs(vendors, calibration=_EMOJI_SPLITS[split])


def shown_name(source: str | os.PathLike) -> str:
    """How reports and cards call a source: the last part of a path, or the whole name of such a set."""
    return named_set(source) or os.path.basename(os.fspath(source).rstrip("/"))


__all__ = ["load_named", "named_set", "shown_name"]
