"""What an evaluation found: as JSON, as a Markdown table of several models, and as the Hub's `EvalResult`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..inference.finite import require_finite, to_json
from ..processing.files.writing import refuse_no_folder, write_text
from .published import published_table

_TASKS = {
    "retrieval": ("retrieval", "Image-text retrieval"),
    "matching": ("image-text-matching", "Image-text matching"),
    "classification": ("zero-shot-image-classification", "Zero-shot image classification"),
    "fine-tuned classification": ("image-classification", "Image classification"),
    "captioning": ("image-to-text", "Image captioning"),
}
_NAMES = {
    "auc": "ROC-AUC",
    "accuracy": "accuracy at the best threshold",
    "threshold": "best threshold",
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr-D",
    "exact_match": "exactly right",
    "mean_recall": "mean recall",
}
_STAGES = {
    "pre_ranking": "pre-ranking",
    "two_stage": "pre-ranking + ranking",
    "two_stage_fused": "pre-ranking + ranking (fused score)",
    "two_stage_published": "pre-ranking + ranking (published score)",
}
#: What readers call a rule of two-stage scores.
SCORES = {"fused": "fused (cosine / τ + log-odds)", "published": "published (cosine + probability)"}
_WAYS = {"text_to_image": "text→image", "image_to_text": "image→text"}


@dataclass(frozen=True)
class EvaluationResult:
    """One model on one data set.

    Args:
        metrics: name -> value, percent but for `cider` and `threshold`.
        intervals: name -> its bootstrap interval.
        counts: sizes of what was judged.
        settings: all that the figures depend on.
        data_hash: digest of the data that were read.
        model_hash: digest of the model.

    Raises:
        NotFiniteError: a metric that is not finite.
    """

    task: str
    data: str
    model: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    data_hash: str | None = None
    model_hash: str | None = None
    seconds: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        require_finite(self.metrics, f"{self.task} of {self.model} on {self.data}")

    @property
    def kind(self) -> str:
        """The task; of a classifier that was fine-tuned, which needs no prompts, "fine-tuned classification"."""
        return "fine-tuned classification" if "classes of the classifier" in self.counts else self.task

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EvaluationResult:
        """The inverse of `to_dict`, also after JSON."""
        intervals = {name: tuple(ends) for name, ends in values["intervals"].items()}
        return cls(**{**values, "intervals": intervals})

    def eval_results(self) -> list[EvalResult]:
        """For the header of a model card: `ModelCardData(eval_results=…, model_name=…)`."""
        task_type, task_name = _TASKS[self.kind]
        return [
            EvalResult(
                task_type=task_type,
                task_name=task_name,
                dataset_type=_slug(self.data),
                dataset_name=self.data,
                metric_type=name.replace(".", "_"),
                metric_name=metric_title(name),
                metric_value=round(value, 4),
                metric_args={"interval": [round(end, 4) for end in ends]}
                if (ends := self.intervals.get(name))
                else None,
            )
            for name, value in self.metrics.items()
        ]


def task_title(task: str) -> str:
    """What readers call a task: Image-text retrieval."""
    return _TASKS[task][1]


def metric_title(name: str) -> str:
    """`two_stage.text_to_image_r1` as readers know it: text→image R@1, pre-ranking + ranking."""
    stage, dot, rest = name.rpartition(".")
    way = next((way for way in _WAYS if rest.startswith(f"{way}_r")), None)
    title = f"{_WAYS[way]} R@{rest.removeprefix(f'{way}_r')}" if way else _NAMES.get(rest, rest)
    return f"{title}, {_STAGES.get(stage, stage)}" if dot else title


def markdown_report(results: Sequence[EvaluationResult]) -> str:
    """A table for every task and data set, a column per model, with intervals; below it what was published, apart.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("there are no results to report")
    groups: dict[tuple, list[EvaluationResult]] = {}
    for result in results:
        groups.setdefault((result.task, result.data, result.data_hash), []).append(result)
    return "\n".join(_table(task, data, group) for (task, data, _), group in groups.items())


def write_report(results: Sequence[EvaluationResult], folder: str | PathLike) -> tuple[Path, Path]:
    """`retrieval-muge.json` and `.md` in `folder`, which is made: named after the first result's task and data, and
    replaced where they are there. Where `folder` ends in `.json` it is the file itself.

    Raises:
        FileExistsError: as `refuse_foreign_report`.
    """
    task, data = results[0].task, results[0].data
    refuse_foreign_report(folder, task, data)
    plain, table = _report_files(folder, task, data)
    rows = [result.to_dict() for result in results]
    write_text(plain, to_json(rows, plain, indent=2) + "\n")
    write_text(table, markdown_report(results))
    return plain, table


def refuse_foreign_report(folder: str | PathLike, task: str, data: str) -> None:
    """Raise where a report of a task and data would replace a file that is no report.

    Raises:
        FileExistsError: names it.
        NotADirectoryError: the folder is a file.
    """
    refuse_no_folder(Path(folder).parent if is_report_file(folder) else folder)
    for path in _report_files(folder, task, data):
        if not path.is_symlink() and not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() and not path.is_symlink() else ""
        ours = text.startswith("## ") if path.suffix == ".md" else _is_list_of_results(text)
        if not ours:
            raise FileExistsError(f"{path} is in the way and no report of this program: move it away")


def _is_list_of_results(text: str) -> bool:
    try:
        held = json.loads(text)
        return isinstance(held, list) and all({"task", "metrics", "data_hash"} <= each.keys() for each in held)
    except (ValueError, AttributeError, RecursionError):
        return False


def is_report_file(output: str | PathLike) -> bool:
    """Whether reports are to go to one file, `NAME.json`, and `NAME.md` beside it, rather than to a folder."""
    return Path(output).suffix.lower() == ".json" and not Path(output).is_dir()


def _report_files(folder: str | PathLike, task: str, data: str) -> tuple[Path, Path]:
    if is_report_file(folder):
        return Path(folder), Path(folder).with_suffix(".md")
    name = f"{task}-{_slug(data)}"
    return Path(folder) / f"{name}.json", Path(folder) / f"{name}.md"


def _table(task: str, data: str, group: list[EvaluationResult]) -> str:
    names = list(dict.fromkeys(name for result in group for name in result.metrics))
    counts = ", ".join(f"{n:,} {what}" for what, n in {k: v for r in group for k, v in r.counts.items()}.items())
    title = task_title(group[0].kind if len({result.kind for result in group}) == 1 else "fine-tuned classification")
    lines = [
        f"## {title}: {data}",
        "",
        counts + (f"; {note}" if (note := _note(group)) else ""),
        "",
        "| | " + " | ".join(result.model for result in group) + " |",
        "|---|" + "---:|" * len(group),
    ]
    for name in names:
        best = max((r.metrics[name] for r in group if name in r.metrics), default=None)
        cells = [figure(result, name, len(group) > 1 and result.metrics.get(name) == best) for result in group]
        lines.append(f"| {metric_title(name)} | " + " | ".join(cells) + " |")
    published = published_table(data) if task in ("retrieval", "classification") else None
    return "\n".join([*lines, "", *([published, ""] if published else [])])


def figure(result: EvaluationResult, name: str, bold: bool = False) -> str:
    """A measure with its interval as tables show it, `61.3 (55.3–66.7)`; – where the result has none of that name."""
    if name not in result.metrics:
        return "–"
    digits = 3 if name == "threshold" else 2 if name.endswith("cider") else 1
    value = f"{result.metrics[name]:.{digits}f}"
    value = f"**{value}**" if bold and name != "threshold" else value
    if (ends := result.intervals.get(name)) is None:
        return value
    return f"{value} ({ends[0]:.{digits}f}–{ends[1]:.{digits}f})"


def _note(group: list[EvaluationResult]) -> str:
    settings = group[0].settings
    parts = []
    if settings.get("candidates"):
        parts.append(f"{settings['candidates']} candidates ranked")
    rules = {result.model: SCORES[rule] for result in group if (rule := result.settings.get("score")) is not None}
    if rules:
        alike = len({*rules.values()}) == 1
        named = next(iter(rules.values())) if alike else ", ".join(f"of {name} {rule}" for name, rule in rules.items())
        parts.append(f"score: {named}")
    if settings.get("negatives"):
        parts.append(f"negatives: {settings['negatives']}")
    if any(result.intervals for result in group):
        parts.append(
            f"in brackets {settings['confidence']:.0%} bootstrap intervals, {settings['resamples']:,} resamples"
        )
    return "; ".join(parts)


def _slug(text: str) -> str:
    return "-".join("".join(c.lower() if c.isalnum() else " " for c in text).split())
