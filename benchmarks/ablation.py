"""What every objective adds, on the demo set: at equal optimizer steps, and at equal time.

    python benchmarks/ablation.py [--quick] [--seeds 0 1 2] [--study steps|time] [--part 0/2]

Equal time: seconds per step are measured side by side first, and every recipe gets as many steps as fit into the time
that "+ ET/MLM" takes. Resumes cell by cell; `--part i/n` runs every n-th cell and draws nothing.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cells import WAYS, Cell, recall, run_cells, study_folder
from common import TABLES, Table, add_part, arguments, finish, interleave, median
from r2d2_step import batch_of

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.cli.demo_run import demo_config
from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, TargetGuidedSettings
from modeling_r2d2.training.recipes import Recipe

#: Chosen with Samsung held out, see docs/benchmarks/tuning.md.
TARGETS = TargetGuidedSettings(queue_size=0, alpha=0.2)
FEATURES = FeatureGuidedSettings(image_drop=0.25, block=8)
MOMENTUM = 0.98


_BARE = Recipe(ranker=False, masking=False, target_guided=None, feature_guided=None, momentum=MOMENTUM)
_MLM = replace(_BARE, ranker=True, masking=True)
#: From "+ ET/MLM" on, the ranker reads the masked texts, as in the paper.
VARIANTS = {
    "GCPR": _BARE,
    "+ FGR": replace(_BARE, ranker=True),
    "+ ET/MLM": _MLM,
    "+ TgD": replace(_MLM, target_guided=TARGETS),
    "+ FgD": replace(_MLM, feature_guided=FEATURES),
    "all": replace(_MLM, target_guided=TARGETS, feature_guided=FEATURES),
}
REFERENCE = "+ ET/MLM"
STAGES = {"pre_ranking": "pre-ranking", "two_stage": "two-stage"}


def seconds_per_step(rounds: int, rows: int) -> dict[str, float]:
    """Median seconds of a training step of every variant, measured in turn."""
    contenders = {}
    for name, recipe in VARIANTS.items():
        torch.manual_seed(0)
        config = demo_config(800, recipe.ranker, rank_masked_texts=recipe.ranker and recipe.masking)
        model = R2D2ForPreTraining._from_config(config, attn_implementation="eager").train()
        batch = batch_of(rows, range(3, 13))
        batch["pixel_values"] = torch.randn(rows, 40, 40, 3).permute(0, 3, 1, 2)
        if not recipe.masking:
            del batch["masked_input_ids"], batch["mlm_labels"]
        contenders[name] = _step_of(model, recipe, batch)
    return {name: median(values) for name, values in interleave(contenders, rounds).items()}


def _step_of(model: R2D2ForPreTraining, recipe: Recipe, batch: dict[str, torch.Tensor]):
    if recipe.feature_guided is not None:
        model.add_feature_heads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ways = (recipe.target_guided, recipe.feature_guided)
    state = DistillationState(model, *ways, batch=len(batch["input_ids"])) if recipe.distils else None

    def step() -> None:
        teacher = None if state is None else state.targets(batch, 0, model.current_temperature(), 0.4)
        model(**batch, teacher=teacher).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if state is not None:
            state.commit(model, MOMENTUM)

    return step


def timing(folder: Path, rounds: int, rows: int) -> dict[str, float]:
    """Seconds per step, measured once and kept beside the cells."""
    file = folder / "seconds_per_step.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(seconds_per_step(rounds, rows), indent=1) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def plan(study: str, seeds: list[int], steps: int, seconds: dict[str, float]) -> dict[str, list[Cell]]:
    """The cells of a study, by variant."""
    share = {name: seconds[REFERENCE] / seconds[name] if study == "time" else 1.0 for name in VARIANTS}
    return {
        name: [
            Cell(recipe, seed, max(1, round(steps * share[name])), rank_masked_texts=recipe.ranker and recipe.masking)
            for seed in seeds
        ]
        for name, recipe in VARIANTS.items()
    }


def spread(values: list[float | None]) -> str:
    """mean ± standard deviation of the sample; of one seed the value alone."""
    if values[0] is None:
        return "–"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def mean_and_deviation(text: str) -> tuple[float, float]:
    """What `spread` wrote."""
    mean, _, deviation = text.partition(" ± ")
    return float(mean), float(deviation or 0)


def seeds_line(seeds: int) -> str:
    """How many seeds a table rests on."""
    return (
        "one seed: differences of a few points may be chance"
        if seeds == 1
        else (f"mean ± standard deviation over {seeds} seeds")
    )


def both_ways(result: dict[str, Any], vendor: str, stage: str) -> float | None:
    """Mean R@1 of text→image and image→text."""
    values = [recall(result, vendor, stage, way) for way in WAYS]
    return None if values[0] is None else sum(values) / 2


def table_of(study: str, results: dict[str, list[dict]], seconds: dict[str, float], steps: int, quick: bool) -> Table:
    """A row per variant."""
    rows = []
    for name, group in results.items():
        row = {"objectives": name, "steps": group[0]["cell"]["steps"], "s/step": seconds[name]}
        for vendor in TEST_VENDORS:
            for stage, heading in STAGES.items():
                row[f"{vendor} {heading}"] = spread([both_ways(r, vendor, stage) for r in group])
        rows.append(row)
    columns = {f"{vendor} {heading}": "" for vendor in TEST_VENDORS for heading in STAGES.values()}
    equal = "the same number of optimizer steps" if study == "steps" else "the same time, by measured seconds per step"
    seeds = len(next(iter(results.values())))
    return Table(
        f"ablation_{study}",
        f"Ablation at equal {study}",
        f"R@1 in percent, mean of text→image and image→text, on vendors never trained on; {equal}; "
        f"{seeds_line(seeds)}. 300 concepts, chance 0.3. From random weights, in a few minutes: what the "
        "objectives do for long training from warm towers is not measured here.",
        {"objectives": "", "steps": "d", "s/step": ".3f", **columns},
        rows,
        {"seeds": seeds, "batch_size": 150, "reference_steps": steps},
        quick=quick,
        script="ablation",
    )


def draw(tables: dict[str, Table], path: Path) -> None:
    """Bars of every variant with their deviations; one panel a study and vendor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(tables), 2, figsize=(11, 3.6 * len(tables)), squeeze=False)
    for line, (study, table) in zip(axes, tables.items(), strict=True):
        for axis, vendor in zip(line, TEST_VENDORS, strict=True):
            for offset, (heading, color) in enumerate((("pre-ranking", "#2a6fb5"), ("two-stage", "#d9822b"))):
                for place, row in enumerate(table.rows):
                    text = row[f"{vendor} {heading}"]
                    if text != "–":
                        mean, deviation = mean_and_deviation(text)
                        label = heading if place == len(table.rows) - 1 else None
                        axis.bar(place + 0.4 * offset, mean, 0.38, yerr=deviation, color=color, label=label, capsize=2)
            axis.set_xticks(
                [p + 0.2 for p in range(len(table.rows))], [r["objectives"] for r in table.rows], fontsize=8
            )
            axis.set_title(f"{vendor}, equal {study}", fontsize=10, loc="left")
            axis.set_ylabel("R@1, %")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, draw, save."""
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--study", choices=["steps", "time"], nargs="+", default=["steps", "time"])
    add_part(parser)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    folder = study_folder("ablation", options.quick)
    seeds, steps = (options.seeds[:1], 2) if options.quick else (options.seeds, options.steps)
    seconds = timing(folder, 1 if options.quick else options.rounds, 8 if options.quick else 150)
    part, parts = options.part
    tables, status = {}, 0
    for study in options.study:
        planned = plan(study, seeds, steps, seconds)
        by_seed = [group[place] for place in range(len(seeds)) for group in planned.values()]
        results = dict(zip(by_seed[part::parts], run_cells(by_seed[part::parts], folder), strict=True))
        if parts == 1:
            found = {name: [results[cell] for cell in group] for name, group in planned.items()}
            tables[study] = table_of(study, found, seconds, steps, options.quick)
            status |= finish(tables[study], options.tables)
    if parts == 1:
        place = options.tables or (folder if options.quick else TABLES.parent / "images")
        draw(tables, place / "ablation.png")
    return status


if __name__ == "__main__":
    sys.exit(main())
