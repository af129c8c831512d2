"""A ranker on frozen towers: five minutes of the recipe `ranker`, or five more minutes of the plain loss.

    python benchmarks/frozen_towers.py [--quick] [--seeds 0 1 2] [--seconds 300] [--part 0/2]

On towers that `warm.py` trains on single emoji to a plateau, with scenes, of which they have seen none, and with the
names that they know; by CPU seconds of one core, of which the ranker's hold the encoding of its pairs, too. Its match
probability is calibrated on Samsung, which nothing trains on, by uniformly drawn wrong pairs; Twitter and Windows are
for the table. Resumes cell by cell.
"""

import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ablation import seeds_line, spread
from calibration import Encoded
from cells import key_of, study_folder, write_result
from common import Check, Table, add_part, arguments, finish
from rich.console import Console
from torch import Tensor
from transformers import set_seed
from warm import BATCH, CHOICE, LEARNING_RATE, STUDIES, VENDORS, StepSeconds, recalls, settings_of, warm_towers

from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.inference.calibrating import PairList, load_gallery
from modeling_r2d2.inference.calibration import fit_log_odds, reliability
from modeling_r2d2.processing.datasets.emoji import TEMPLATES, EmojiPairs
from modeling_r2d2.processing.datasets.pair_sets import Pairs
from modeling_r2d2.processing.datasets.scenes import ScenePairs
from modeling_r2d2.training.pretraining import build_trainer
from modeling_r2d2.training.settings import StartingPoint
from modeling_r2d2.training.start import starting_point
from modeling_r2d2.training.trainer import R2D2Trainer

#: The towers that a study begins with: they know the names and have seen no scene, as trained towers of someone else
#: know things and not one's own sentences.
TOWERS = {"scenes": "things", "names": "names"}
#: Of scenes, as many as half a minute encodes.
TWINS = 2000
RECIPES = ("ranker", "clip")


@dataclass(frozen=True)
class FrozenCell:
    """A run: everything that its result depends on."""

    study: str
    recipe: str
    seed: int
    seconds: int
    steps: int
    towers: str


def pairs_of(study: str) -> Pairs:
    """One's own, for the ranker and for the towers alike."""
    return ScenePairs(VENDORS, twins=TWINS) if study == "scenes" else EmojiPairs(VENDORS, templates=TEMPLATES)


def gallery_name(study: str, vendor: str) -> str:
    """As every verb calls it."""
    return f"scenes:{vendor}/{'validation' if vendor == CHOICE else 'test'}" if study == "scenes" else f"emoji:{vendor}"


def trainer_of(study: str, recipe: str, seed: int, steps: int, output: Path, towers: Path) -> R2D2Trainer:
    """As `r2d2 pretrain --recipe RECIPE --model TOWERS`; the ranker's pairs are encoded here."""
    ours = {"augment": False} if recipe == "ranker" else {"augmentation": STUDIES[study].augmentation}
    settings = settings_of(recipe, seed, steps, output, learning_rate=LEARNING_RATE, **ours)
    set_seed(seed)
    layers = 1 if recipe == "ranker" else None
    pairs = pairs_of(study)
    model, processor = starting_point(StartingPoint(model=towers, ranker_layers=layers), pairs, recipe == "ranker")
    return build_trainer(model, processor, pairs, settings)


def costs(study: str, folder: Path, towers: Path, quick: bool) -> dict[str, float]:
    """CPU seconds of what comes before, the encoding of the pairs, and of a step of either, once; kept beside the
    cells."""
    file = folder / f"seconds-{key_of([study, towers.name, TWINS])}.json"
    if not file.is_file():
        run, found = folder / "timing.run", {}
        for recipe in RECIPES:
            started, clock = time.process_time(), StepSeconds()
            trainer = trainer_of(study, recipe, 0, 3 if quick else 30, run, towers)
            found[f"before {recipe}"] = time.process_time() - started
            trainer.add_callback(clock)
            trainer.train()
            found[recipe] = statistics.median(clock.seconds[1:])
            remove_run(run)
        write_result(file, found)
    return json.loads(file.read_text(encoding="utf-8"))


def remove_run(output: Path) -> None:
    """A run's folder, and what its frozen towers made of the pairs, which counts into the seconds of each."""
    for folder in (output, output.with_name(f"{output.name}.states")):
        shutil.rmtree(folder, ignore_errors=True)


def calibration_errors(trainer: R2D2Trainer, study: str) -> dict[str, dict[str, float]]:
    """Expected calibration error on every test vendor, before and after the fit on Samsung."""
    model, processor = trainer.model.eval(), trainer.processing_class

    def encoded(vendor: str) -> Encoded:
        return Encoded.by(model, processor, load_gallery(gallery_name(study, vendor)))

    fit, found = encoded(CHOICE), {}
    pairs = fit.draw("uniform")
    fitted = fit_log_odds(*_with_labels(fit, pairs), pairs.groups)
    for vendor in TEST_VENDORS:
        test = encoded(vendor)
        pairs = test.draw("uniform", 3)
        z, labels, s = _with_labels(test, pairs)
        calibrated = fitted.with_prior(float(labels.double().mean())).of_log_odds(z, s)
        found[vendor] = {
            "ECE before": reliability(z.sigmoid(), labels).error,
            "ECE after": reliability(calibrated, labels).error,
        }
    return found


def _with_labels(gallery: Encoded, pairs: PairList) -> tuple[Tensor, Tensor, Tensor]:
    log_odds, similarity = gallery.evidence(pairs)
    return log_odds, pairs.labels, similarity


def run_cell(cell: FrozenCell, folder: Path, towers: Path, quick: bool) -> dict[str, Any]:
    """The cell's result, from its file or by training now. After two steps there is nothing to calibrate."""
    file = folder / f"{key_of(asdict(cell))}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    output, started = folder / f"{file.stem}.run", time.process_time()
    trainer = trainer_of(cell.study, cell.recipe, cell.seed, cell.steps, output, towers)
    trainer.train()
    seconds = time.process_time() - started
    vendors = {vendor: recalls(trainer, cell.study, vendor) for vendor in (CHOICE, *TEST_VENDORS)}
    if cell.recipe == "ranker" and not quick:
        for vendor, errors in calibration_errors(trainer, cell.study).items():
            vendors[vendor] |= errors
    result = {"cell": asdict(cell), "cpu_seconds": round(seconds, 1), "vendors": vendors}
    write_result(file, result)
    remove_run(output)
    return result


def table_of(results: list[dict[str, Any]], quick: bool) -> Table:
    """A row per study and vendor."""
    rows, checks = [], []
    for study in dict.fromkeys(r["cell"]["study"] for r in results):
        ours, more = (
            [r for r in results if (r["cell"]["study"], r["cell"]["recipe"]) == (study, recipe)] for recipe in RECIPES
        )
        for vendor in (CHOICE, *TEST_VENDORS):
            figures = [r["vendors"][vendor] for r in ours]
            row = {"pairs": study, "vendor": vendor}
            row["towers"] = spread([each["pre-ranking"] for each in figures])
            row["+ ranker"] = spread([each["fused"] for each in figures])
            row["published score"] = spread([each["published"] for each in figures])
            row["plain goes on"] = spread([r["vendors"][vendor]["pre-ranking"] for r in more])
            if vendor != CHOICE and not quick:
                row |= {name: statistics.mean(each[name] for each in figures) for name in ("ECE before", "ECE after")}
            rows.append(row)
            if vendor == TEST_VENDORS[0]:
                gained = statistics.mean(each["fused"] - each["pre-ranking"] for each in figures)
                wanted = 5.0 if study == "scenes" else 0.0
                checks.append(Check(f"points that the ranker adds, {study}, {vendor}", gained, wanted, ">=", ".1f"))
    cell, seeds = results[0]["cell"], len({r["cell"]["seed"] for r in results})
    ranker = next(r["cell"]["steps"] for r in results if r["cell"]["recipe"] == "ranker")
    plain = next(r["cell"]["steps"] for r in results if r["cell"]["recipe"] == "clip")
    return Table(
        "frozen_towers",
        "A ranker on frozen towers",
        "R@1 in percent, mean of text→image and image→text: trained towers alone, with a ranker that had "
        f"{cell['seconds']} CPU seconds ({ranker} steps on scenes) by both scores, and the towers after as many of the "
        f"plain loss ({plain} steps). {seeds_line(seeds)}, from the same towers. Expected calibration error of the "
        "match probability, one true pair in four, before and after a fit on Samsung. Nothing trained on them.",
        {"pairs": "", "vendor": "", "towers": "", "+ ranker": "", "published score": "", "plain goes on": ""}
        | {"ECE before": ".3f", "ECE after": ".3f"},
        rows,
        {"seeds": seeds, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "twins": TWINS},
        checks,
        quick=quick,
        script="frozen_towers",
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.set_defaults(threads=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=int, default=300, help="of each run (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder, warm, console = study_folder("frozen_towers", options.quick), study_folder("warm", options.quick), Console()
    cells, places = [], {}
    for seed in [0] if options.quick else options.seeds:
        for study in options.only:
            places[study] = towers = warm_towers(TOWERS[study], warm, options.quick)
            cost = costs(study, folder, towers, options.quick)
            for recipe in RECIPES:
                left = options.seconds - cost[f"before {recipe}"]
                steps = 2 if options.quick else max(round(left / cost[recipe]), 1)
                cells.append(FrozenCell(study, recipe, seed, options.seconds, steps, towers.name))
    part, parts = options.part
    results = []
    for number, cell in list(enumerate(cells, 1))[part::parts]:
        results.append(run_cell(cell, folder, places[cell.study], options.quick))
        shown = " ".join(f"{name} {value:.1f}" for name, value in results[-1]["vendors"][CHOICE].items())
        console.print(f"{number}/{len(cells)} {cell.study} {cell.recipe} seed {cell.seed}: {shown}", highlight=False)
    return 0 if parts > 1 else finish(table_of(results, options.quick), options.tables)


if __name__ == "__main__":
    sys.exit(main())
