"""Wrong captions: GCPR against target-guided distillation with a share of the training captions exchanged.

    python benchmarks/noise.py [--quick] [--seeds 0 1 2] [--part 0/2]

Target-guided distillation is said to be for noisy pairs; this asks whether it is. A wrong pair has the name of another
concept, drawn once, for the whole run. Without ranker. Resumes cell by cell.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from ablation import MOMENTUM, TARGETS, both_ways, mean_and_deviation, seeds_line, spread
from cells import Cell, mean_recall, run_cells, study_folder
from common import TABLES, Table, add_part, arguments, finish

from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.training.recipes import Recipe

GCPR = Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None, momentum=MOMENTUM)
RECIPES = {
    "GCPR": GCPR,
    "TgD, α 0.4": replace(GCPR, target_guided=replace(TARGETS, alpha=0.4)),
    "TgD, α 0.8": replace(GCPR, target_guided=replace(TARGETS, alpha=0.8)),
}
NOISE = (0.0, 0.2, 0.4)


def table_of(results: dict[Cell, dict], steps: int, quick: bool) -> Table:
    """A row per share of noise and objective."""
    rows = []
    for noise in NOISE:
        for name, recipe in RECIPES.items():
            group = [r for cell, r in results.items() if (cell.noise, cell.recipe) == (noise, recipe)]
            row = {"wrong captions": noise, "objective": name}
            for vendor in TEST_VENDORS:
                row[f"{vendor} R@1"] = spread([both_ways(r, vendor, "pre_ranking") for r in group])
                row[f"{vendor} mean recall"] = spread([mean_recall(r, vendor) for r in group])
            rows.append(row)
    columns = {f"{vendor} {figure}": "" for vendor in TEST_VENDORS for figure in ("R@1", "mean recall")}
    seeds = len({cell.seed for cell in results})
    return Table(
        "noise",
        "Wrong captions: GCPR against TgD",
        "Recall in percent by pre-ranking, both ways together, on vendors never trained on, after training with a "
        f"share of the captions exchanged; {seeds_line(seeds)}.",
        {"wrong captions": ".0%", "objective": "", **columns},
        rows,
        {"seeds": seeds, "steps": steps, "batch_size": 150},
        quick=quick,
    )


def draw(table: Table, path: Path) -> None:
    """Mean recall over the share of wrong captions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for axis, vendor in zip(axes, TEST_VENDORS, strict=True):
        for name in RECIPES:
            rows = [row for row in table.rows if row["objective"] == name]
            points = [mean_and_deviation(row[f"{vendor} mean recall"]) for row in rows]
            means, deviations = zip(*points, strict=True)
            axis.errorbar([100 * n for n in NOISE], means, deviations, marker="o", capsize=3, label=name)
        axis.set_title(vendor, loc="left", fontsize=10)
        axis.set_xlabel("wrong captions, %")
        axis.set_ylabel("mean recall, %")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, draw, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder = study_folder("noise", options.quick)
    seeds, steps = (options.seeds[:1], 2) if options.quick else (options.seeds, options.steps)
    todo = [Cell(recipe, seed, steps, noise=n) for seed in seeds for n in NOISE for recipe in RECIPES.values()]
    part, parts = options.part
    results = dict(zip(todo[part::parts], run_cells(todo[part::parts], folder), strict=True))
    if parts > 1:
        return 0
    table = table_of(results, steps, options.quick)
    draw(table, (options.tables or (folder if options.quick else TABLES.parent / "images")) / "noise.png")
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
