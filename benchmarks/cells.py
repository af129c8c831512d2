"""One cell of a study on the demo set: a recipe trained with a seed, and its recall. Cells are cached as JSON, so a
study that was interrupted goes on with the next cell."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import QUICK_TABLES
from rich.console import Console

from modeling_r2d2.cli.demo_run import TRAINING_VENDORS, demo_trainer, evaluate_demo
from modeling_r2d2.cli.demo_settings import TEST_VENDORS, DemoSettings
from modeling_r2d2.inference.scoring import SCORE_RULES
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from modeling_r2d2.processing.datasets.records import stable_ids
from modeling_r2d2.training.recipes import Recipe

WAYS = ("text_to_image", "image_to_text")
#: Raised where training itself has changed, so that earlier results no longer count.
REVISION = 2


@dataclass(frozen=True)
class Cell:
    """A run: everything that its result depends on."""

    recipe: Recipe
    seed: int
    steps: int
    held_out: tuple[str, ...] = TEST_VENDORS
    rank_masked_texts: bool = False
    noise: float = 0.0
    fgd_weight: float = 1.0

    def key(self) -> str:
        """Of the file that holds the result."""
        return key_of({**asdict(self), "revision": REVISION})


def key_of(content: Any) -> str:
    """A name that differs where the content does."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_result(file: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_suffix(".partial")
    staging.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    staging.rename(file)


class NoisyPairs(EmojiPairs):
    """Emoji pairs of which a share has the name, and the id, of another concept, drawn once.

    The id goes with the caption: a wrong pair is a wrong label, not a hidden right one.
    """

    def __init__(self, vendors: list[str], noise: float, seed: int, **kwargs: Any):
        super().__init__(vendors, **kwargs)
        rng = np.random.default_rng((seed, 77))
        self.wrong = np.sort(rng.permutation(len(self.items))[: round(noise * len(self.items))])
        concepts = list({concept.key: concept for concept, _ in self.items}.values())
        self.caption_of = [concept for concept, _ in self.items]
        for place in self.wrong:
            others = [concept for concept in concepts if concept.key != self.items[place][0].key]
            self.caption_of[place] = others[rng.integers(len(others))]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "image_id": self.caption_of[index].key}

    def texts(self, index: int) -> list[str]:
        return [template.format(self.caption_of[index].name) for template in self.templates]

    def image_ids(self) -> np.ndarray:
        return stable_ids([concept.key for concept in self.caption_of])


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """The cell's result, from its file or by training now: recall in percent by vendor and stage, seconds."""
    file = folder / f"{cell.key()}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    output = folder / f"{cell.key()}.run"
    shutil.rmtree(output, ignore_errors=True)
    vendors = [vendor for vendor in TRAINING_VENDORS if vendor not in cell.held_out]
    settings = DemoSettings(
        output=output,
        max_steps=cell.steps,
        seed=cell.seed,
        held_out=cell.held_out,
        recipe=cell.recipe,
        logging_steps=min(50, cell.steps),
    )
    pairs = NoisyPairs(vendors, cell.noise, cell.seed, calibration="exclude")
    trainer = demo_trainer(settings, pairs, {}, cell.rank_masked_texts)
    trainer.model.config.fgd_weight = cell.fgd_weight
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    galleries = {vendor: EmojiPairs([vendor]) for vendor in cell.held_out}
    results = {v: evaluate_demo(trainer.model, trainer.processing_class, g) for v, g in galleries.items()}
    result = {
        "cell": json.loads(json.dumps(asdict(cell), default=str)),
        "training_seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "vendors": {vendor: r.to_dict() for vendor, r in results.items()},
        "last_log": next(entry for entry in reversed(trainer.state.log_history) if "loss" in entry),
    }
    write_result(file, result)
    shutil.rmtree(output, ignore_errors=True)
    return result


def run_cells(cells: Iterable[Cell], folder: Path, console: Console | None = None) -> list[dict[str, Any]]:
    """All of them in order, those that are there not again; a line for each."""
    console, cells = console or Console(), list(cells)
    results = []
    for number, cell in enumerate(cells, 1):
        results.append(run_cell(cell, folder))
        figures = " ".join(f"{v} {mean_recall(results[-1], v):.1f}" for v in cell.held_out)
        console.print(
            f"{number}/{len(cells)} seed {cell.seed} steps {cell.steps} noise {cell.noise:g} "
            f"{label(cell)}: {figures} ({results[-1]['training_seconds']:.0f} s)",
            highlight=False,
        )
    return results


def label(cell: Cell) -> str:
    """The objectives of a cell in a line."""
    recipe = cell.recipe
    parts = [] if recipe.target_guided else ["GCPR"]
    parts += [name for name, on in (("FGR", recipe.ranker), ("masks", recipe.masking)) if on]
    parts += ["ET"] * cell.rank_masked_texts
    parts += [f"ranking from {recipe.rank_from:g}"] if recipe.rank_from else []
    if t := recipe.target_guided:
        ramp = "–".join(f"{share:g}" for share in t.alpha_ramp)
        queue = "by size" if t.queue_size is None else t.queue_size
        parts.append(f"TgD(queue {queue}, α {t.alpha} over {ramp}, w in {t.reliability})")
    if f := recipe.feature_guided:
        temperatures = f"τ {f.student_temperature or 'by width'}/{f.teacher_temperature or 'by width'}"
        parts.append(f"{cell.fgd_weight:g}·FgD({temperatures}, drop {f.image_drop})")
    return " ".join([*parts, f"m {recipe.momentum}"] if recipe.distils else parts)


def recall(result: dict[str, Any], vendor: str, stage: str, way: str, k: int = 1) -> float | None:
    """R@k in percent, by a stage or by a score of both; None where the model has no such stage."""
    of_vendor = result["vendors"][vendor]
    figures = (of_vendor["two_stage_by_score"] or {}).get(stage) if stage in SCORE_RULES else of_vendor[stage]
    return None if figures is None else figures[f"{way}_r{k}"]


def mean_recall(result: dict[str, Any], vendor: str, stage: str = "pre_ranking") -> float:
    """Mean of R@1, R@5 and R@10 both ways, in percent."""
    values = [recall(result, vendor, stage, way, k) for way in WAYS for k in (1, 5, 10)]
    return sum(values) / len(values)


def study_folder(name: str, quick: bool) -> Path:
    """Where a study keeps its cells."""
    return QUICK_TABLES / (f"{name}_quick" if quick else name)
