"""Scenes written out as a user's own data look: pictures, JSON lines of pairs, and labelled lists for matching."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files.progress import bar
from .scenes import SPLITS, TWINS, ScenePairs, Split


def write_scenes(
    folder: Path,
    vendors: Sequence[str] = ("google",),
    test_vendor: str = "twitter",
    twins: int | None = None,
    openly_licensed_only: bool = True,
) -> dict[Split, ScenePairs]:
    """Write every split into a folder, which is there.

    | file | a line |
    |---|---|
    | `train.jsonl`, `validation.jsonl`, `test.jsonl` | `image, text` (all captions), `image_id`, `group` (of twins) |
    | `train_matching.jsonl`, … | `image, text, image_id, label`: its captions (1), those of its twin (0) |

    Training pictures are drawn by all `vendors`, those of validation by the first of them, those of the test by
    `test_vendor`: so validation asks for new pairs of concepts, and the test for these in drawings of another style.

    Args:
        twins: of the training split by each vendor, and at most so many of the others; default: as `ScenePairs`.
        openly_licensed_only: refuse vendors whose art is proprietary.

    Raises:
        ImportError: the packages of `[demo]` are not installed.
        ValueError: an unknown vendor, or a proprietary one where only open ones may be used.
    """
    drawn_by: dict[Split, Sequence[str]] = {"train": vendors, "validation": vendors[:1], "test": [test_vendor]}
    ScenePairs.require_vendors([*vendors, test_vendor], openly_licensed_only)
    splits = {
        split: ScenePairs(drawn_by[split], split, twins and (twins if split == "train" else min(twins, TWINS[split])))
        for split in SPLITS
    }
    shown = bar(doing="drawing", total=sum(map(len, splits.values())))
    for split, pairs in splits.items():
        rows, labelled = [], []
        for index, key in enumerate(pairs.keys()):
            _, vendor = pairs.items[index]
            image = f"images/{split}/{vendor}/{index:05}.png"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            pairs.image(index).save(folder / image)
            known = {"image": image, "image_id": key}
            rows.append({**known, "text": pairs.texts(index), "group": f"{vendor} {index // pairs.together}"})
            labelled += [{**known, "text": pairs.texts(index), "label": 1}]
            labelled += [{**known, "text": pairs.texts(index ^ 1), "label": 0}]
            shown.update()
        _write_lines(folder / f"{split}.jsonl", rows)
        _write_lines(folder / f"{split}_matching.jsonl", labelled)
    shown.close()
    return splits


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


__all__ = ["write_scenes"]
