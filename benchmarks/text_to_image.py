"""The text-to-image demo: do its pictures find their own name, by an R2D2 of another seed?

    python benchmarks/text_to_image.py [--quick] [--r2d2 DIR] [--judge DIR] [--run runs/benchmarks/text_to_image]

The two R2D2 are seeds 0 and 1 of `benchmarks/demo_seeds.py`. A run whose results.json is there is not made again.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from common import QUICK_TABLES, TABLES, Check, Table, arguments, finish
from readme_figures import shrink

from modeling_r2d2.processing.datasets.emoji import demo300_keys
from modeling_r2d2.text_to_image.demo import DemoSettings, demo_settings, run_demo

#: R@10 of generated pictures over guessing.
WANTED = 5.0
QUICK = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "save_steps": 0,
    "sample_every": 0,
    "sample_steps": 1,
    "logging_steps": 1,
}


def results_of(run: Path, r2d2: Path, judge: Path, quick: bool = False) -> dict[str, Any]:
    """An earlier run's results.json, or those of a run made now.

    Raises:
        ValueError: the earlier run was not judged.
    """
    file = run / "results.json"
    if not file.is_file() or quick:
        shutil.rmtree(run, ignore_errors=True)
        settings = DemoSettings(demo_settings(run, **(QUICK if quick else {})), r2d2, judge)
        if quick:
            settings.seeds, settings.concepts = 1, demo300_keys()[:12]
        run_demo(settings)
    results = json.loads(file.read_text(encoding="utf-8"))
    if "judged" not in results:
        raise ValueError(f"{file} has no judgement: remove its folder, or make the run with --judge")
    return results


def table_of(results: dict[str, Any], quick: bool = False) -> Table:
    """Recall of the pictures' own names, generated and drawn by people."""
    rows = []
    for name, figures in results["judged"].items():
        row = {"pictures": name, "number": figures["images"]}
        row |= {f"R@{k}": figures["recall"][f"r{k}"] for k in (1, 5, 10)}
        row |= {"median rank": figures["median_rank"], "match probability": figures["match_probability"]}
        rows.append(row | {"with another name": figures["other_match_probability"]})
    generated = results["judged"]["generated"]
    chance = generated["chance"]
    rows.append({"pictures": "guessing", **{f"R@{k}": chance[f"r{k}"] for k in (1, 5, 10)}})
    training, nearest = results["training"], results["nearest"]
    columns = {"pictures": "", "number": "d", **{f"R@{k}": ".1f" for k in (1, 5, 10)}, "median rank": ".0f"}
    return Table(
        "text_to_image",
        "Text-to-image: pictures that find their own name",
        f"Generated pictures as queries against {generated['names']} Chinese names, judged by an R2D2 of another seed "
        "than the one whose text encoder conditions the generator; in percent. The judge has seen Google's drawings "
        "in its own training, and Twitter's not.",
        {**columns, "match probability": ".2f", "with another name": ".2f"},
        rows,
        {
            "minutes_of_training": f"{training['seconds'] / 60:.1f}",
            "steps": training["steps"],
            "batch_size": training["settings"]["per_device_train_batch_size"],
            "parameters": f"{training['trained_parameters']:,}",
            "torch_threads": training["threads"],
            "seeds": results["seeds"],
            **results["call"],
        },
        [Check("R@10 of generated pictures over guessing", generated["recall"]["r10"] / chance["r10"], WANTED, ">=")],
        [
            f"Nearest training picture: {nearest['median_rmse']:.1f} of 255 away (median RMSE), of the same concept "
            f"for {nearest['same_concept_percent']:.0f} % of the generated pictures."
        ],
        quick=quick,
    )


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, print, save."""
    parser = arguments(__doc__, rounds=1)
    seeds = QUICK_TABLES / "demo_seeds"
    parser.add_argument("--r2d2", type=Path, default=seeds / "seed-0", help="conditions (default: %(default)s)")
    parser.add_argument("--judge", type=Path, default=seeds / "seed-1", help="judges (default: %(default)s)")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/benchmarks/text_to_image)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    run = options.run or QUICK_TABLES / ("text_to_image_quick" if options.quick else "text_to_image")
    results = results_of(run, options.r2d2, options.judge, options.quick)
    if not options.quick:
        for name, drawn in (("sheet", "text_to_image"), ("new_combinations", "text_to_image_new")):
            shrink(run / f"{name}.png", (options.tables or TABLES.parent / "images") / f"{drawn}.png")
    return finish(table_of(results, options.quick), options.tables)


if __name__ == "__main__":
    sys.exit(main())
