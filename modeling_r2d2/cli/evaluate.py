"""`r2d2 evaluate`: one or several models on a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, SEED, SHARE
from ..processing.files.settings import setting
from .options import Computing, Pairs, ReadingImages
from .terminal import Terminal


@dataclass(kw_only=True)
class EvaluationRun(Pairs, ReadingImages, Computing):
    """What `r2d2 evaluate` takes."""

    panel: ClassVar[str] = "Evaluation"
    more_models: list[str] = setting([], "Further models: --model A B C.", argument=True)
    task: Literal["retrieval", "matching", "classification", "captioning"] = setting("retrieval", "What is measured.")
    data: str = setting(help="The data: pairs, a folder of classes, emoji:VENDOR or scenes:VENDOR.")
    model: list[str] = setting([], "The folder of a model. Several make one table.")
    label: str | None = setting(None, "For matching, the column of labels in files of your own.")
    name: str | None = setting(
        None, "The name of the data in reports. 'MUGE', 'Flickr30k-CN', … print the published figures beside ours."
    )
    two_stage: bool = setting(False, "For retrieval, rank the best candidates too.")
    candidates: int | None = setting(
        None, "How many candidates --two-stage ranks. The default is 128, for ICR and IQR 64.", bounds=COUNT
    )
    score: Literal["fused", "published"] | None = setting(
        None, "How --two-stage scores. The default is as each model says; the other is printed, too."
    )
    pairs: Path | None = setting(None, "For matching, a list that `r2d2 data matching-pairs` made.")
    labels: Path | None = setting(None, "For classification, a file of lines `folder<TAB>中文名`.")
    prompts: Path | None = setting(None, "For classification, a file of templates with {}, one a line.")
    captions: Path | None = setting(None, "For captioning, judge the captions of this file instead of a model.")
    output: Path = setting(
        Path("runs/evaluation"),
        "The folder of the reports (JSON and Markdown) and of kept results; or one file, NAME.json.",
    )
    cache: bool = setting(True, "Take results that are kept, and keep new ones.")
    resamples: int = setting(1000, "Resamples of the bootstrap. With 0 there are no intervals.", bounds=COUNT_OR_NONE)
    confidence: float = setting(0.95, "The confidence of the intervals.")
    seed: int = setting(0, "Of the bootstrap.", bounds=SEED)
    batch_size: int = setting(32, "Pictures that are encoded at once.", bounds=COUNT)
    device: str = setting("cpu", "Where to compute: cpu, cuda, mps.")
    max_error_rate: float = setting(0.01, "Data of which a larger share is bad are refused.", bounds=SHARE)


def evaluate(settings: EvaluationRun) -> None:
    """Evaluate models: a table with bootstrap intervals, as text, JSON and Markdown; published figures apart."""
    from ..evaluation.results import is_report_file, markdown_report, refuse_foreign_report, write_report
    from ..evaluation.runner import evaluate_models
    from ..evaluation.settings import EvaluationSettings
    from ..evaluation.zero_shot import PROMPTS, read_prompts
    from ..inference.bootstrap import Bootstrap

    if settings.prompts is not None and settings.task != "classification":
        raise ValueError(f"prompts belong to the task classification, not to {settings.task}")
    names = ("task", "data", "name", "two_stage", "candidates", "score", "pairs", "labels", "captions")
    evaluation = EvaluationSettings(
        **{name: getattr(settings, name) for name in (*names, "batch_size", "device")},
        reading=settings.reading(),
        prompts=PROMPTS if settings.prompts is None else read_prompts(settings.prompts),
        bootstrap=Bootstrap(settings.resamples, settings.confidence, settings.seed),
    )
    notes, output = Terminal(stderr=True), settings.output
    refuse_foreign_report(output, evaluation.task, evaluation.data_name)
    models = [*settings.model, *settings.more_models]
    kept = output / "cache" if settings.cache and not is_report_file(output) else None
    results = evaluate_models(evaluation, models, kept, notes.print)
    plain, table = write_report(results, output)
    Terminal().print(markdown_report(results))
    notes.print(f"written: {plain}, {table}")
