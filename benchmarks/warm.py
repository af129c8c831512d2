"""The paper's regime: trained towers, then each system the same seconds of one core, from the same towers.

    python benchmarks/warm.py [--quick] [--seeds 0 1 2] [--part 0/2] [--only scenes names] [--choose]

On scenes of two or three emoji, single names, all 1,441 concepts, and names of which 40 % are exchanged. Towers are
trained by the plain contrastive loss to a plateau, once for each data set. Then each system goes on from there for so
many steps as fit into the seconds, by CPU seconds a step measured in turn. Nothing trains on Samsung: `--choose` shows
its figures alone, by which settings are chosen; Twitter and Windows are for the table. Resumes cell by cell; `--part
i/n` runs every n-th cell and draws nothing.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ablation import seeds_line, spread
from cells import WAYS, NoisyPairs, key_of, study_folder, write_result
from common import Check, Table, add_part, arguments, finish
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, set_seed

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Processor
from modeling_r2d2.cli.demo_run import demo_config
from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.inference.recall import recall_both_ways
from modeling_r2d2.inference.scoring import SCORE_RULES
from modeling_r2d2.processing.batch_augmentation import BatchAugmentation
from modeling_r2d2.processing.datasets.emoji import TEMPLATES, EmojiPairs
from modeling_r2d2.processing.datasets.pair_sets import Pairs
from modeling_r2d2.processing.datasets.scenes import SPLITS, ScenePairs
from modeling_r2d2.processing.datasets.scenes import TEMPLATES as CAPTIONS
from modeling_r2d2.processing.tokenization import build_character_tokenizer
from modeling_r2d2.training.pretraining import build_trainer
from modeling_r2d2.training.recipes import RECIPES, Recipe
from modeling_r2d2.training.settings import PretrainingSettings
from modeling_r2d2.training.trainer import R2D2Trainer

VENDORS = ("apple", "facebook", "google", "joypixels")
#: Never trained on, and what settings are chosen by.
CHOICE = "samsung"
#: A training vendor: of scenes, concepts that have not met are a test of their own.
KNOWN = "google"
IMAGE_SIZE, LENGTH, BATCH, CANDIDATES = 48, 32, 128, 32
LEARNING_RATE = 1e-3
WRONG = 0.4
#: Of scenes to train on.
TWINS = 8000

GCPR = Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None)
FGR = replace(GCPR, ranker=True)
#: By name: a recipe of the package as it stands, or one of these.
SYSTEMS: dict[str, str | Recipe] = {
    "plain": GCPR,
    "two plain": GCPR,
    "PRD2": "prd2",
    "+ FGR": FGR,
    "+ FGR + MLM": replace(FGR, masking=True),
    "+ FGR, TgD": replace(FGR, target_guided=RECIPES["prd2"].target_guided),
    "R2D2": "r2d2",
}
#: Half the seconds each, and the sum of their s/τ: what adding two scores gains by itself.
ENSEMBLE = "two plain"


@dataclass(frozen=True)
class Study:
    """A data set, and the towers that its runs begin with.

    Args:
        pairs: to train on, by seed.
        gallery: by vendor, one text an image.
        warm_steps: of the plain loss, until recall on Samsung grows no more.
        towers: the study whose towers it takes; None: its own.
        begins: the study whose towers they begin with.
        seconds: of each system.
        augmentation: of the pictures.
    """

    pairs: Callable[[int], Pairs]
    gallery: Callable[[str], Pairs]
    warm_steps: int = 1000
    towers: str | None = None
    begins: str | None = None
    seconds: tuple[int, ...] = (200,)
    augmentation: BatchAugmentation = field(default_factory=BatchAugmentation)


def scene_gallery(vendor: str) -> ScenePairs:
    """300 scenes of concepts that have not met in training."""
    return ScenePairs([vendor], "validation" if vendor == CHOICE else "test")


def noisy(seed: int) -> NoisyPairs:
    """Names of which a share is another concept's."""
    return NoisyPairs(list(VENDORS), WRONG, seed, templates=TEMPLATES)


#: Captions of scenes name colors, and every emoji.
WHOLE = BatchAugmentation(shuffle_channels=0, grayscale=0, erase=0)
#: What towers alone are trained on: one emoji somewhere on a canvas, for a while and to a plateau.
_SINGLE = Study(
    lambda seed: ScenePairs(VENDORS, twins=TWINS, kinds=["alone"]), scene_gallery, warm_steps=500, augmentation=WHOLE
)
BEGINNINGS = {"single": _SINGLE, "things": replace(_SINGLE, warm_steps=2000)}
STUDIES = {
    "scenes": Study(
        lambda seed: ScenePairs(VENDORS, twins=TWINS),
        scene_gallery,
        warm_steps=4000,
        begins="single",
        seconds=(100, 200, 400),
        augmentation=WHOLE,
    ),
    "names": Study(lambda seed: EmojiPairs(VENDORS, templates=TEMPLATES), lambda vendor: EmojiPairs([vendor])),
    "concepts": Study(
        lambda seed: EmojiPairs(VENDORS, "all", TEMPLATES), lambda vendor: EmojiPairs([vendor], "all"), warm_steps=2000
    ),
    "wrong captions, clean towers": Study(noisy, lambda vendor: EmojiPairs([vendor]), towers="names"),
    "wrong captions, noisy towers": Study(noisy, lambda vendor: EmojiPairs([vendor])),
}
ALL = {**BEGINNINGS, **STUDIES}


@dataclass(frozen=True)
class WarmCell:
    """A run: everything that its result depends on."""

    study: str
    system: str
    recipe: str
    seed: int
    seconds: int
    steps: int
    vendors: tuple[str, ...]


def vocabulary() -> list[str]:
    """Texts whose characters the tokenizer of all studies knows."""
    scenes = [text for split in SPLITS for text in ScenePairs([KNOWN], split, kinds=list(CAPTIONS)).all_texts()]
    return [*scenes, *EmojiPairs([KNOWN], "all", TEMPLATES).all_texts()]


def study_config(tokens: int, ranker: bool) -> R2D2Config:
    """The demo's, for longer texts and larger pictures."""
    config = demo_config(tokens, ranker, rank_masked_texts=True)
    config.text_config.max_position_embeddings = config.max_text_length = LENGTH
    return config


def trainer_of(
    study: str, system: str, seed: int, steps: int, output: Path, towers: Path | None, rate: float = LEARNING_RATE
) -> R2D2Trainer:
    """A run of a system on a study, from trained towers or from nothing."""
    recipe = SYSTEMS[system]
    set_seed(seed)
    tokenizer = build_character_tokenizer(vocabulary(), max_length=LENGTH)
    processor = R2D2Processor.build(tokenizer, image_size=IMAGE_SIZE, max_length=LENGTH)
    ranker = (RECIPES[recipe] if isinstance(recipe, str) else recipe).ranker
    model = R2D2ForPreTraining._from_config(study_config(len(tokenizer), ranker), attn_implementation="eager")
    if towers is not None:
        found = model.load_state_dict(load_file(towers / "model.safetensors"), strict=False)
        new = ("text_image", "image_text", "image_joint", "mlm_head")
        assert not found.unexpected_keys, found
        assert all(name.startswith(new) for name in found.missing_keys), found
    settings = settings_of(recipe, seed, steps, output, learning_rate=rate, augmentation=ALL[study].augmentation)
    return build_trainer(model, processor, ALL[study].pairs(seed), settings)


def settings_of(recipe: str | Recipe, seed: int, steps: int, output: Path, **more: Any) -> PretrainingSettings:
    """Of every run from trained towers."""
    return PretrainingSettings(
        output=output,
        overwrite=True,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        weight_decay=0.1,
        recipe=recipe,
        channels_last=True,
        seed=seed,
        dataloader_num_workers=0,
        logging_steps=max(steps // 10, 1),
        save_steps=0,
        arguments={"adam_beta2": 0.98, "optim": "adamw_torch_fused", "disable_tqdm": True},
        **more,
    )


def warm_towers(study: str, folder: Path, quick: bool) -> Path:
    """The folder of a study's trained towers, which are trained now if they are not there."""
    study = ALL[study].towers or study
    steps = 2 if quick else ALL[study].warm_steps
    place = folder / f"towers-{key_of([study, steps, ALL[study].begins])}"
    if not (place / "model.safetensors").is_file():
        before = ALL[study].begins and warm_towers(str(ALL[study].begins), folder, quick)
        run = place.with_suffix(".run")
        trainer = trainer_of(study, "plain", 0, steps, run, before or None, 2 * LEARNING_RATE)
        trainer.train()
        trainer.save_model(str(run))
        run.rename(place)
    return place


class StepSeconds(TrainerCallback):
    """CPU seconds of each step of a run."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.process_time())

    @property
    def seconds(self) -> list[float]:
        """All but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def seconds_per_step(study: str, folder: Path, quick: bool, rounds: int) -> dict[str, float]:
    """Median CPU seconds of a training step of each system, measured in turn, once; kept beside the cells."""
    file = folder / f"seconds-{key_of([study, {n: str(r) for n, r in SYSTEMS.items()}, str(RECIPES)])}.json"
    if not file.is_file():
        found: dict[str, list[float]] = {name: [] for name in SYSTEMS}
        run, towers = folder / "timing.run", warm_towers(study, folder, quick)
        for _ in range(1 if quick else rounds):
            for name in SYSTEMS:
                clock = StepSeconds()
                trainer = trainer_of(study, name, 0, 3 if quick else 10, run, towers)
                trainer.add_callback(clock)
                trainer.train()
                found[name] += clock.seconds[1:]
        shutil.rmtree(run, ignore_errors=True)
        write_result(file, {name: statistics.median(values) for name, values in found.items()})
    return json.loads(file.read_text(encoding="utf-8"))


def recalls(trainer: R2D2Trainer, study: str, vendor: str) -> dict[str, float]:
    """R@1 in percent, mean of both ways, by pre-ranking and by each score; of scenes also the share of captions that
    score their own image above its twin."""
    model, processor = trainer.model.eval(), trainer.processing_class
    gallery = STUDIES[study].gallery(vendor)
    images = [gallery.image(place) for place in range(len(gallery))]
    stage = CANDIDATES if model.can_rank else None
    found = evaluate_retrieval(model, processor, images, gallery.first_texts(), candidates=stage, batch_size=100)
    figures = {"pre-ranking": both_ways(found.pre_ranking)}
    matrices = {"pre-ranking": found.cosine}
    for rule in SCORE_RULES if found.two_stage_by_score else ():
        figures[rule] = both_ways(found.two_stage_by_score[rule])
    if found.text_to_image_scores is not None:
        matrices["fused"] = found.text_to_image_scores
    if study == "scenes":
        figures |= {f"twin, {name}": twin_accuracy(matrix) for name, matrix in matrices.items()}
    return figures


def both_ways(recall: dict[str, float]) -> float:
    """Mean R@1 of text→image and image→text."""
    return sum(recall[f"{way}_r1"] for way in WAYS) / len(WAYS)


def twin_accuracy(scores: Tensor) -> float:
    """Share of texts, in percent, that score their own image above that of the twin, which stands beside it."""
    place = torch.arange(len(scores))
    return 100 * (scores[place, place] > scores[place, place ^ 1]).float().mean().item()


def ensemble_recalls(trainers: list[R2D2Trainer], study: str, vendor: str) -> dict[str, float]:
    """As `recalls`, by the sum of s/τ of several models."""
    gallery, total = STUDIES[study].gallery(vendor), torch.zeros(())
    images = [gallery.image(place) for place in range(len(gallery))]
    for trainer in trainers:
        model = trainer.model.eval()
        found = evaluate_retrieval(model, trainer.processing_class, images, gallery.first_texts(), batch_size=100)
        total = total + found.cosine / model.bounded_temperature().item()
    figures = {"pre-ranking": both_ways(recall_both_ways(total, total.t(), torch.eye(len(images), dtype=torch.bool)))}
    return figures | ({"twin, pre-ranking": twin_accuracy(total)} if study == "scenes" else {})


def run_cell(cell: WarmCell, folder: Path, quick: bool) -> dict[str, Any]:
    """The cell's result, from its file or by training now."""
    file = folder / f"{key_of(asdict(cell))}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    output, towers = folder / f"{file.stem}.run", warm_towers(cell.study, folder, quick)
    parts = 2 if cell.system == ENSEMBLE else 1
    trainers, started = [], time.process_time()
    for part in range(parts):
        seed = cell.seed + 1000 * part
        trainers.append(trainer_of(cell.study, cell.system, seed, max(cell.steps // parts, 1), output, towers))
        trainers[-1].train()
    seconds = time.process_time() - started
    if parts == 1:
        vendors = {vendor: recalls(trainers[0], cell.study, vendor) for vendor in cell.vendors}
    else:
        vendors = {vendor: ensemble_recalls(trainers, cell.study, vendor) for vendor in cell.vendors}
    last_log = next(entry for entry in reversed(trainers[0].state.log_history) if "loss" in entry)
    result = {"cell": asdict(cell), "cpu_seconds": round(seconds, 1), "vendors": vendors, "last_log": last_log}
    write_result(file, result)
    shutil.rmtree(output, ignore_errors=True)
    return result


def plan(options: Any, folder: Path) -> list[WarmCell]:
    """All cells: the scenes' lengths, then the other studies; by seed first, so that half a run is a smaller run."""
    cells = []
    vendors = (CHOICE, KNOWN) if options.choose else (CHOICE, KNOWN, *TEST_VENDORS)
    for seed in [0] if options.quick else options.seeds:
        for name in options.only or STUDIES:
            per_step = seconds_per_step(name, folder, options.quick, options.rounds)
            for seconds in options.seconds or STUDIES[name].seconds:
                for system, recipe in SYSTEMS.items():
                    if options.systems and system not in options.systems:
                        continue
                    steps = 2 if options.quick else max(round(seconds / per_step[system]), 1)
                    what = str(RECIPES[recipe] if isinstance(recipe, str) else recipe)
                    cells.append(WarmCell(name, system, what, seed, seconds, steps, vendors))
    return cells


def table_of(study: str, results: list[dict[str, Any]], quick: bool) -> Table:
    """A row per system and length."""
    rows, columns = [], {"seconds": "d", "system": "", "objectives": "", "steps": "d"}
    keys = list(dict.fromkeys((r["cell"]["seconds"], r["cell"]["system"]) for r in results))
    for seconds, system in keys:
        group = [r for r in results if (r["cell"]["seconds"], r["cell"]["system"]) == (seconds, system)]
        cell = group[0]["cell"]
        row = {"seconds": seconds, "system": system, "objectives": cell["recipe"], "steps": cell["steps"]}
        for vendor in cell["vendors"]:
            for figure in dict.fromkeys(name for r in group for name in r["vendors"][vendor]):
                row[f"{vendor} {figure}"] = spread([r["vendors"][vendor][figure] for r in group])
        rows.append(row)
    for vendor in results[0]["cell"]["vendors"]:
        for name in dict.fromkeys(name for r in results for name in r["vendors"][vendor]):
            columns[f"{vendor} {name}"] = ""
    seeds = len({r["cell"]["seed"] for r in results})
    return Table(
        f"warm_{study.replace(', ', '_').replace(' ', '_')}",
        f"From trained towers: {study}",
        "R@1 in percent, mean of text→image and image→text, by pre-ranking and by both stages with either score; the "
        "same CPU seconds of one core for each system, from the same towers; of scenes also the share of captions that "
        f"score their image above its twin (chance 50 %). {seeds_line(seeds)}. Nothing trained on Samsung, by which "
        "settings were chosen, nor on Twitter and Windows; Google's drawings were trained on.",
        columns,
        rows,
        {"seeds": seeds, "batch_size": BATCH, "learning_rate": LEARNING_RATE, "candidates": CANDIDATES},
        quick=quick,
        script="warm",
        checks=checks(study, results),
    )


def checks(study: str, results: list[dict[str, Any]]) -> list[Check]:
    """What the recipe r2d2 gains over the plain loss on Twitter, at 200 seconds."""

    def mean(system: str, *figures: str) -> float | None:
        values = [
            next(r["vendors"]["twitter"][name] for name in figures if name in r["vendors"]["twitter"])
            for r in results
            if r["cell"]["system"] == system and r["cell"]["seconds"] == 200 and "twitter" in r["vendors"]
        ]
        return statistics.mean(values) if values else None

    ours, plain = mean("R2D2", "fused", "pre-ranking"), mean("plain", "pre-ranking")
    wanted = {"scenes": 8.0, "names": 0.0}.get(study)
    if ours is None or plain is None or wanted is None:
        return []
    return [
        Check(
            f"two-stage R@1 of r2d2 above the plain loss, {study}, Twitter, points", ours - plain, wanted, ">=", ".1f"
        )
    ]


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, save."""
    parser = arguments(__doc__, rounds=3)
    parser.set_defaults(threads=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), help="studies (default: all)")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="systems (default: all)")
    parser.add_argument("--seconds", type=int, nargs="+", help="of each system (default: the study's)")
    parser.add_argument("--choose", action="store_true", help=f"figures of {CHOICE} and {KNOWN} alone; no table")
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder, console = study_folder("warm", options.quick), Console()
    cells, (part, parts) = plan(options, folder), options.part
    total = sum(cell.seconds for cell in cells)
    console.print(f"{len(cells)} cells, {total / 3600:.1f} hours of one core, less what is there already")
    results: dict[str, list[dict[str, Any]]] = {}
    for number, cell in list(enumerate(cells, 1))[part::parts]:
        results.setdefault(cell.study, []).append(run_cell(cell, folder, options.quick))
        figures = results[cell.study][-1]["vendors"][CHOICE]
        shown = " ".join(f"{name} {value:.1f}" for name, value in figures.items())
        console.print(
            f"{number}/{len(cells)} {cell.study} {cell.seconds} s {cell.system} seed {cell.seed}: {shown}",
            highlight=False,
        )
    if parts > 1 or options.choose:
        return 0
    return max([finish(table_of(study, found, options.quick), options.tables) for study, found in results.items()])


if __name__ == "__main__":
    sys.exit(main())
