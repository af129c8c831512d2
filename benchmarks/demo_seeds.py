"""The demo with three seeds: recall of the test vendors, mean and standard deviation.

    python benchmarks/demo_seeds.py [--quick] [--seeds 0 1 2] [--runs runs/benchmarks/demo_seeds]

A seed whose results.json is there is not run again, so an interrupted benchmark goes on with the next seed.
"""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from cells import recall
from common import QUICK_TABLES, Check, Table, arguments, finish

from modeling_r2d2.cli.demo_run import run_demo
from modeling_r2d2.cli.demo_settings import DemoSettings

WAYS = {"text_to_image": "text→image", "image_to_text": "image→text"}
STAGES = {
    "pre_ranking": "pre-ranking",
    "fused": "pre-ranking + ranking",
    "published": "pre-ranking + ranking, published score",
}
KS = (1, 5, 10)
#: Of the first test vendor, text→image R@1 in percent.
WANTED = {"pre_ranking": 50.0, "fused": 55.0}


#: Settings that the table names.
_SHOWN = ("max_steps", "per_device_train_batch_size", "learning_rate", "candidates")


def results_of(seed: int, runs: Path, steps: int | None = None) -> dict[str, Any]:
    """A seed's results.json, from an earlier run or by running the demo now.

    Raises:
        ValueError: the earlier run had other settings.
    """
    output = runs / f"seed-{seed}"
    settings = DemoSettings(seed=seed, output=output)
    if steps is not None:
        settings.max_steps = steps
    file = output / "results.json"
    if file.is_file():
        results = json.loads(file.read_text(encoding="utf-8"))
        found = results["settings"]
        for name in ("seed", "weight_decay", *_SHOWN):
            if found.get(name) != getattr(settings, name):
                raise ValueError(
                    f"{output.name}/results.json was made with {name} {found.get(name)}, the demo now has "
                    f"{getattr(settings, name)}: remove that folder to run the seed again"
                )
        return results
    if output.exists():  # cut off before it was finished
        shutil.rmtree(output)
    run_demo(settings)
    return json.loads(file.read_text(encoding="utf-8"))


def spread(values: list[float]) -> str:
    """mean ± standard deviation (of the sample), in percent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def table_of(results: dict[int, dict[str, Any]], quick: bool = False) -> Table:
    """The table of all seeds; results by seed, as `run_demo` gives them."""
    seeds, first = list(results), next(iter(results.values()))
    rows, checks = [], []
    for place, vendor in enumerate(first["vendors"]):
        for stage, stage_name in STAGES.items():
            for way, way_name in WAYS.items():
                figures = {k: [recall(results[s], vendor, stage, way, k) for s in seeds] for k in KS}
                row = {"vendor": vendor, "direction": way_name, "scored by": stage_name}
                row |= {f"R@{k}": spread(values) for k, values in figures.items()}
                rows.append(row | {"R@1 by seed": ", ".join(f"{value:.1f}" for value in figures[1])})
                if place == 0 and way == "text_to_image" and stage in WANTED:
                    name = f"{vendor}, {way_name} R@1 by {stage_name}, mean of {len(seeds)} seeds, %"
                    checks.append(Check(name, statistics.mean(figures[1]), WANTED[stage], ">=", ".1f"))
    minutes = [results[s]["training_seconds"] / 60 for s in seeds]
    settings = {name: first["settings"][name] for name in _SHOWN}
    gallery = next(iter(first["vendors"].values()))["images"]
    return Table(
        "demo_seeds",
        "The demo, three seeds" if len(seeds) == 3 else f"The demo, {len(seeds)} seeds",
        f"Recall in percent on vendors that were never trained on, a gallery of {gallery} pictures and one query a "
        f"concept, its plain name (chance {100 / gallery:.1f} % at R@1); mean ± standard deviation over the seeds.",
        {"vendor": "", "direction": "", "scored by": "", **{f"R@{k}": "" for k in KS}, "R@1 by seed": ""},
        rows,
        {"seeds": " ".join(map(str, seeds)), **settings, "training_minutes": f"{max(minutes):.1f} at most"},
        checks,
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/benchmarks/demo_seeds)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    name = "demo_seeds_quick" if options.quick else "demo_seeds"
    runs = options.runs or QUICK_TABLES / name
    seeds, steps = (options.seeds[:1], 2) if options.quick else (options.seeds, None)
    results = {seed: results_of(seed, runs, steps) for seed in seeds}
    return finish(table_of(results, options.quick), options.tables)


if __name__ == "__main__":
    sys.exit(main())
