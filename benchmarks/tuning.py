"""The free choices of two-way distillation on the demo set, with Samsung's pictures held out; the test vendors are
not looked at.

    python benchmarks/tuning.py [--quick] [--seeds 0 1] [--part 0/2]

Short runs without ranker, each against the same run without distillation. Resumes cell by cell; `--part i/n` runs
every n-th cell, to share the work between processes.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from cells import Cell, label, mean_recall, recall, run_cells, study_folder
from common import Table, add_part, arguments, finish

from modeling_r2d2.cli.demo_settings import DemoSettings
from modeling_r2d2.distillation import FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.training.recipes import Recipe

TARGETS = TargetGuidedSettings(queue_size=450, alpha=0.4)
FEATURES = FeatureGuidedSettings(block=8)
#: τ_s and τ_t that follow from the width of the demo's heads.
STUDENT_TAU, TEACHER_TAU = FEATURES.temperatures(128)
PLAIN = Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None)
TGD = replace(PLAIN, target_guided=TARGETS, momentum=0.98)
FGD = replace(PLAIN, masking=True, feature_guided=FEATURES, momentum=0.98)
RANKED = Recipe(target_guided=None, feature_guided=None)
HELD_OUT = ("samsung",)


def with_targets(**changes) -> Recipe:
    """The recipe with TgD, some of its settings changed."""
    return replace(TGD, target_guided=replace(TARGETS, **changes))


def with_features(**changes) -> Recipe:
    """The recipe with FgD, some of its settings changed."""
    return replace(FGD, feature_guided=replace(FEATURES, **changes))


def cells(seeds: list[int], steps: int) -> list[Cell]:
    """Every choice, one setting changed at a time."""
    early = with_targets(alpha_ramp=(0.0, 0.03))
    choices: list[dict] = [
        {"recipe": PLAIN},
        {"recipe": FGD},
        {"recipe": TGD},
        {"recipe": with_targets(queue_size=0)},
        {"recipe": with_features(teacher_temperature=2 * TEACHER_TAU)},
        {"recipe": FGD, "fgd_weight": 0.3},
        {"recipe": replace(with_targets(queue_size=0, alpha=0.2), momentum=0.9)},
        {"recipe": with_features(teacher_temperature=4 * TEACHER_TAU)},
        {"recipe": replace(with_targets(queue_size=0, alpha=0.6), momentum=0.9)},
        {"recipe": with_features(teacher_temperature=2 * TEACHER_TAU, student_temperature=2 * STUDENT_TAU)},
        {"recipe": RANKED, "rank_masked_texts": True},
        {"recipe": with_features(image_drop=0.25)},
        {"recipe": with_targets(reliability="logits")},
        {"recipe": replace(FGD, momentum=0.9)},
        {"recipe": RANKED},
        {"recipe": with_features(teacher_temperature=0.5 * TEACHER_TAU)},
        {"recipe": FGD, "fgd_weight": 0.1},
        {"recipe": replace(early, momentum=0.95)},
        {"recipe": replace(early, target_guided=replace(early.target_guided, alpha=0.6))},
        {"recipe": replace(early, target_guided=replace(early.target_guided, queue_size=900))},
    ]
    return [Cell(seed=seed, steps=steps, held_out=HELD_OUT, **choice) for seed in seeds for choice in choices]


def demo_cells(seeds: list[int], steps: int) -> list[Cell]:
    """The demo's length: its recipe, and the best distillation of the short runs in the same time, which takes 1.68
    times as long a step (docs/benchmarks/ablation_time.md)."""
    distilled = replace(RANKED, feature_guided=replace(FEATURES, image_drop=0.25), momentum=0.98)
    return [
        Cell(recipe, seed, length, HELD_OUT)
        for seed in seeds
        for recipe, length in ((RANKED, steps), (distilled, round(steps / 1.68)))
    ]


def table_of(all_cells: list[Cell], results: list[dict], quick: bool = False, name: str = "tuning") -> Table:
    """Mean over the seeds of every choice."""
    grouped: dict[str, list[dict]] = {}
    for cell, result in zip(all_cells, results, strict=True):
        grouped.setdefault(label(cell), []).append(result)
    rows = []
    for objectives, group in grouped.items():
        row = {"objectives": objectives, "steps": group[0]["cell"]["steps"], "seeds": len(group)}
        for stage, heading in (("pre_ranking", "pre-ranking"), ("two_stage", "two-stage")):
            if recall(group[0], "samsung", stage, "text_to_image") is None:
                continue
            row[f"{heading}: mean recall"] = sum(mean_recall(r, "samsung", stage) for r in group) / len(group)
            row[f"{heading}: t→i R@1"] = sum(recall(r, "samsung", stage, "text_to_image") for r in group) / len(group)
        rows.append(row | {"by seed": ", ".join(f"{mean_recall(r, 'samsung'):.1f}" for r in group)})
    figures = {f"{h}: {m}": ".1f" for h in ("pre-ranking", "two-stage") for m in ("mean recall", "t→i R@1")}
    return Table(
        name,
        "Choosing the settings of distillation, Samsung held out"
        + (": the demo's length" if name == "tuning_demo" else ""),
        "Recall in percent on Samsung's 300 demo pictures, trained on Apple, Facebook, Google and JoyPixels. Mean "
        "recall: of R@1, R@5, R@10 both ways, by pre-ranking where a column does not say otherwise.",
        {"objectives": "", "steps": "d", "seeds": "d", **figures, "by seed": ""},
        rows,
        {"batch_size": 150},
        quick=quick,
        script="tuning",
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--study", choices=["settings", "demo"], nargs="+", default=["settings", "demo"])
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder: Path = study_folder("tuning", options.quick)
    seeds, status = options.seeds[:1] if options.quick else options.seeds, 0
    part, parts = options.part
    for study in options.study:
        plan, steps = (cells, options.steps) if study == "settings" else (demo_cells, DemoSettings.max_steps)
        todo = plan(seeds, 2 if options.quick else steps)
        results = run_cells(todo[part::parts], folder)
        if parts == 1:
            name = "tuning" if study == "settings" else "tuning_demo"
            status |= finish(table_of(todo, results, options.quick, name), options.tables)
    return status


if __name__ == "__main__":
    sys.exit(main())
