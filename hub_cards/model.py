"""The card of a model folder, in English or Chinese: what the folder, the measurements and the user say."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..processing.files.writing import note_written, write_text
from .checking import require_valid
from .facts import ModelFacts, read_facts
from .licenses import DataSource, license_fields
from .speed import Speed
from .wording import LANGUAGES, SCORES, STARTS, TRAINING, TRAINING_SHOWN, UNKNOWN, Language, counts, measure, pick, task

if TYPE_CHECKING:
    from ..evaluation.results import EvaluationResult

_TEMPLATES = Path(__file__).parent
_TAGS = ("vision-language", "image-text-retrieval", "chinese", "custom_code")
#: Metrics of an evaluation by their last name -> the Hub's name of the metric.
_METRICS = {
    "auc": "roc_auc",
    "accuracy": "accuracy",
    "top1": "accuracy",
    "top5": "accuracy",
    "mean_per_class": "accuracy",
    "bleu4": "bleu",
    "rouge_l": "rouge",
    "cider": "cider",
    "exact_match": "exact_match",
}
RESULTS_FOLDER = "evaluation"


def model_card(
    folder: str | PathLike,
    *,
    language: Language = "en",
    results: Sequence[EvaluationResult] = (),
    data: Sequence[DataSource] = (),
    license: str | None = None,
    base_model: str | None = None,
    speed: Speed | None = None,
    repo: str | None = None,
    limits: Sequence[str] = (),
) -> ModelCard:
    """The card of a converted, pre-trained or fine-tuned folder; what nobody stated is said to be unknown.

    Args:
        language: of the text. The header's `language` is the model's: Chinese, or what a converted dual encoder reads.
        results: of `r2d2 evaluate`, on these weights.
        license: of the weights.
        data: what it was trained on; none: as the run recorded it, of a user's own data without their licence.
        base_model: Hub name of the model that training began with; None: as the run recorded it.
        speed: of `measure_speed`.
        repo: how the code blocks call the model; default the folder's name.
        limits: sentences of the maker.

    Raises:
        FileNotFoundError, ValueError: no such model folder, see `read_facts`; another language; results of other
            weights, or two for the same task and data.
        CardError: what was given makes an invalid card (a base model that is no name of the Hub).
    """
    if language not in LANGUAGES:
        raise ValueError(f"cards are written in {' or '.join(LANGUAGES)}, not in {language!r}")
    facts = read_facts(folder)
    results, data = list(results), list(data)
    if not data and facts.record is not None:
        data = [DataSource(each.name, each.license) for each in facts.record.data]
    began_with = [base_model] if base_model else facts.record.hub if facts.record is not None else []
    if "architecture" in facts.conversion and facts.origin == "converted":
        license = license or "of the source"
        if not began_with and (known := facts.conversion.get("base_model")):
            began_with = [known]
    check_results(folder, results)
    name = repo or Path(folder).resolve().name
    tags = [tag for tag in _TAGS if tag != "chinese" or "zh" in facts.languages]
    header = ModelCardData(
        language=facts.languages[0] if len(facts.languages) == 1 else facts.languages,
        **license_fields(license),
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        tags=list(dict.fromkeys([facts.kind.lower(), *(["r2d2"] if facts.kind == "PRD2" else []), *tags])),
        base_model=(began_with[0] if len(began_with) == 1 else began_with) or None,
        datasets=[source.hub_id for source in data if source.hub_id] or None,
        metrics=sorted({_metric_name(key) for result in results for key in result.metrics} - {""}) or None,
        model_name=name if results else None,
        eval_results=_eval_results(results) or None,
    )
    card = ModelCard.from_template(
        header,
        template_path=str(_TEMPLATES / f"model_card_{language}.md.jinja"),
        name=name,
        facts=facts,
        vision=_vision(facts, language),
        unknown=UNKNOWN[language],
        training=_training(facts, language),
        results=[_result(result, language) for result in results],
        data=data,
        license=license,
        base_model=_base_model(facts, base_model, language),
        speed=speed,
        limits=limits,
        transformers_version=transformers.__version__,
    )
    require_valid(str(card), "model", name=f"the card of {folder}")
    return card


def write_card(card: ModelCard, folder: str | PathLike, results: Sequence[EvaluationResult] = (), overwrite=False):
    """Write README.md and, below `evaluation/`, the results that it states.

    Returns:
        the paths that were written.

    Raises:
        FileExistsError: there is a card and `overwrite` is False.
    """
    folder = Path(folder)
    path = folder / "README.md"
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already: --overwrite replaces it")
    if results:
        from ..evaluation.results import refuse_foreign_report

        for result in results:
            refuse_foreign_report(folder / RESULTS_FOLDER, result.task, result.data)
    written = [path]
    write_text(path, str(card))
    note_written(folder, "card", [path.name])
    if results:
        from ..evaluation.results import write_report

        for result in results:
            written += write_report([result], folder / RESULTS_FOLDER)
    return written


def read_results(path: str | PathLike) -> list[EvaluationResult]:
    """Results from a JSON file that `r2d2 evaluate` or `r2d2 demo` wrote.

    Raises:
        ValueError: another file; names it.
    """
    from ..evaluation.results import EvaluationResult
    from ..inference.folders import read_json

    held = read_json(Path(path))
    if isinstance(held, dict) and "vendors" in held:  # of the demo
        return [_of_demo(vendor, figures) for vendor, figures in held["vendors"].items()]
    try:
        return [EvaluationResult.from_dict(row) for row in (held if isinstance(held, list) else [held])]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of `r2d2 evaluate`: {error}") from error


def _of_demo(vendor: str, figures: dict[str, Any]) -> EvaluationResult:
    from ..evaluation.results import EvaluationResult

    stages = {stage: figures.get(stage) for stage in ("pre_ranking", "two_stage")}
    for rule, recalls in (figures.get("two_stage_by_score") or {}).items():
        if rule != figures["score"]:
            stages[f"two_stage_{rule}"] = recalls
    metrics = {f"{stage}.{name}": value for stage, held in stages.items() for name, value in (held or {}).items()}
    return EvaluationResult(
        task="retrieval",
        data=f"emoji:{vendor}",
        model="demo",
        metrics=metrics,
        counts={"pictures": figures["images"], "texts": figures["texts"]},
        settings={"candidates": figures["candidates"], "score": figures.get("score")},
    )


def check_results(folder: str | PathLike, results: Sequence[EvaluationResult]) -> None:
    """Raises:
    ValueError: results of other weights than the folder's, or two for one task and data set.
    """
    if not results:
        return
    from ..inference.identity import identity_of_folder

    own = identity_of_folder(folder) if any(result.model_hash for result in results) else None
    seen: set[tuple[str, str]] = set()
    for result in results:
        if result.model_hash and result.model_hash != own:
            raise ValueError(
                f"the results of {result.task} on {result.data} are of other weights than {folder} holds (their digest "
                f"is {result.model_hash}, the folder's {own}): evaluate this folder again"
            )
        if (key := (result.task, result.data)) in seen:
            raise ValueError(f"two results for {result.task} on {result.data}: a card states one")
        seen.add(key)


def _eval_results(results: Sequence[EvaluationResult]) -> list[EvalResult]:
    return [each for result in results for each in result.eval_results()]


def _metric_name(key: str) -> str:
    last = key.rpartition(".")[2]
    return "recall" if "_r" in last and last[-1].isdigit() or last == "mean_recall" else _METRICS.get(last, "")


def _training(facts: ModelFacts, language: Language) -> list[tuple[str, Any]]:
    """Rows of the training table; what is always shown is unknown where nothing says it."""
    if facts.origin == "converted":
        return []
    names = [name for name in TRAINING if name in facts.training or name in TRAINING_SHOWN]
    return [(pick(TRAINING[name], language), facts.training.get(name, UNKNOWN[language])) for name in names]


def _base_model(facts: ModelFacts, given: str | None, language: Language) -> str:
    """Where training began: what the user says, else what the run recorded, else unknown."""
    if given:
        return _link(given)
    if facts.record is None:
        return UNKNOWN[language]
    names = {way: _link(n) if n in facts.record.hub else f"`{n}`" for way, n in facts.record.start.items()}
    way = next(way for way in STARTS if way in names)
    return pick(STARTS[way], language).format(**names)


def _link(repo: str) -> str:
    return f"[{repo}](https://huggingface.co/{repo})"


def _vision(facts: ModelFacts, language: Language) -> str:
    vision = facts.config.vision_config
    parts = [vision.model_type]
    words = {
        "num_hidden_layers": ("{} layers", "{} 层"),
        "hidden_size": ("{} wide", "宽 {}"),
        "patch_size": ("{} px patches", "图块 {} 像素"),
        "image_size": ("{} px pictures", "图片 {} 像素"),
    }
    for name, word in words.items():
        if isinstance(value := getattr(vision, name, None), int):
            parts.append(pick(word, language).format(value))
    return ("，" if language == "zh" else ", ").join(parts)


def _result(result: EvaluationResult, language: Language) -> dict[str, Any]:
    """One table of the card."""
    from ..evaluation.results import metric_title, task_title

    rows = []
    for name, value in result.metrics.items():
        digits = 3 if name == "threshold" else 2
        ends = result.intervals.get(name)
        interval = f"{ends[0]:.{digits}f}–{ends[1]:.{digits}f}" if ends else "–"
        rows.append((measure(metric_title(name), language), f"{value:.{digits}f}", interval))
    settings = result.settings
    return {
        "title": f"{task(task_title(result.task), language)}{'：' if language == 'zh' else ': '}{result.data}",
        "counts": counts(result.counts, language),
        "rows": rows,
        "confidence": settings.get("confidence") if result.intervals else None,
        "resamples": settings.get("resamples"),
        "candidates": settings.get("candidates"),
        "score": pick(SCORES[settings["score"]], language) if settings.get("score") else None,
        "data_hash": result.data_hash,
        "versions": result.versions,
    }


__all__ = ["check_results", "model_card", "read_results", "write_card"]
