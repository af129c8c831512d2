"""What `r2d2 evaluate` says of the demo's models on vendors that no training saw: every task, with intervals.

    python benchmarks/evaluation.py [--quick] [--models DIR …] [--tuned runs/benchmarks/finetuning]

The models of `benchmarks/demo_seeds.py`, and those that `benchmarks/finetuning.py` made of seed 0; the lists of
matching pairs are that benchmark's too, the same for every model.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from common import DEMO_MODELS, QUICK_TABLES, Table, arguments, finish

from modeling_r2d2.cli.demo_settings import TEST_VENDORS
from modeling_r2d2.evaluation.results import figure, metric_title
from modeling_r2d2.evaluation.runner import evaluate_models
from modeling_r2d2.evaluation.settings import EvaluationSettings
from modeling_r2d2.inference.bootstrap import Bootstrap

FINETUNED = "fine-tuned"
NEGATIVES = {"uniform": "wrong pairs drawn uniformly", "fgr": "wrong pairs as FGR draws them"}
SHOWN = {
    "retrieval": [
        f"{stage}.{way}_r1" for stage in ("pre_ranking", "two_stage") for way in ("text_to_image", "image_to_text")
    ]
    + ["two_stage.mean_recall"],
    "matching": ["auc", "accuracy"],
    "classification": ["top1", "top5"],
    "captioning": ["exact_match", "cider"],
}


def runs_of(vendor: str, models: list[Path], tuned: Path) -> list[tuple[EvaluationSettings, list[Path], str]]:
    """Settings, the models that can do the task, and what the table calls it."""
    data, name = f"emoji:{vendor}", vendor.capitalize()
    matching, captioner = tuned / "matching", tuned / "caption"
    runs = [(EvaluationSettings("retrieval", data, name=name, two_stage=True), models, "retrieval among 300")]
    for kind, drawn in NEGATIVES.items():
        pairs = tuned / f"pairs-{vendor}-{kind}.jsonl"
        runs.append(
            (EvaluationSettings("matching", data, name=name, pairs=pairs), [*models, matching], f"matching, {drawn}")
        )
    runs.append(
        (EvaluationSettings("classification", data, name=name), models, "zero-shot classification, 300 classes")
    )
    runs.append((EvaluationSettings("captioning", data, name=name), [captioner], "captioning, 3 beams"))
    return runs


def rows_of(models: list[Path], tuned: Path, cache: Path, resamples: int) -> list[dict[str, Any]]:
    """A row for every vendor, task and metric."""
    rows = []
    for vendor in TEST_VENDORS:
        for settings, able, called in runs_of(vendor, models, tuned):
            settings.bootstrap = Bootstrap(resamples)
            found = dict(zip(able, evaluate_models(settings, able, cache, print), strict=True))
            by_column = {(path.name if path in models else FINETUNED): result for path, result in found.items()}
            for metric in SHOWN[settings.task]:
                row = {"vendor": vendor, "task": called, "measure": metric_title(metric)}
                rows.append(row | {column: figure(result, metric) for column, result in by_column.items()})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Evaluate, print, save."""
    parser = arguments(__doc__, rounds=1)
    parser.add_argument(
        "--models", type=Path, nargs="+", default=list(DEMO_MODELS), help="default: the three of demo_seeds"
    )
    parser.add_argument("--tuned", type=Path, help="where finetuning.py left its models and pairs")
    options = parser.parse_args(argv)
    tuned = options.tuned or QUICK_TABLES / ("finetuning_quick" if options.quick else "finetuning")
    for folder in (*options.models, tuned / "matching", tuned / "caption"):
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} holds no model: benchmarks/demo_seeds.py and benchmarks/finetuning.py make them")
    torch.set_num_threads(1 if options.quick else options.threads)
    models, resamples = (options.models[:1], 20) if options.quick else (options.models, 1000)
    rows = rows_of(models, tuned, QUICK_TABLES / "evaluation", resamples)
    columns = {"vendor": "", "task": "", "measure": "", **{path.name: "" for path in models}, FINETUNED: ""}
    table = Table(
        "evaluation",
        "The demo's models, evaluated",
        "`r2d2 evaluate` on drawings of vendors that no training saw: 300 pictures, a name each; in percent but "
        "CIDEr-D (0 to 10), with 95 % bootstrap intervals over the pictures. Fine-tuned: seed 0 after the small-data "
        "preset for that task.",
        columns,
        rows,
        {"models": " ".join(path.name for path in models), "candidates": 128, "resamples": resamples},
        notes=[
            "Zero-shot classification prompts by sentences, which these models, trained on plain names, never read; "
            "with the plain name as the prompt it is retrieval image→text.",
            "The lists of wrong pairs as FGR draws them were drawn by seed 0, so they are hardest for it.",
        ],
        quick=options.quick,
    )
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
