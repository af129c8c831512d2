"""Cards of converted checkpoints and of the demo's own result, filled from the facts of a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData

_TEMPLATES = Path(__file__).parent
PIPELINE_TAG = "zero-shot-image-classification"
TAGS = ("r2d2", "vision-language", "image-text-retrieval", "image-text-matching", "chinese", "custom_code")

DEMO_LIMITS = (
    "Trained for minutes on a few thousand pictures of emoji: it knows those concepts in those drawing styles, and "
    "nothing about photographs.",
    "It reads the characters of its training texts; any other character is unknown to it.",
    "Concepts that differ in a detail (a digit, the hand of a clock) are confused often.",
    "The vendors of the test pictures drew the same concepts as the training vendors: the figures measure transfer "
    "to an unseen drawing style, not to unseen concepts.",
)


def demo_card(
    *,
    model_name: str,
    figures: Mapping[str, Mapping[str, float]],
    training: Mapping[str, Any],
    split: Mapping[str, str],
    chance: float | None = None,
    parameters: int | None = None,
    limits: Sequence[str] = (),
    images: Sequence[tuple[str, str]] = (),
    repo: str | None = None,
) -> ModelCard:
    """The card of what the demo has trained, with the figures it has measured.

    Args:
        model_name: how the card calls the model.
        figures: evaluation set -> measure -> percent, as in
            `{"Twitter": {"text→image R@1, pre-ranking": 52.1}}`: the table, and the `model-index` of the header.
        training: set-up of the run, name -> value, in the order they are shown.
        split: part of the data -> what it holds, as in `{"training": "Apple, Facebook, …"}`.
        chance: R@1 of guessing, in percent.
        parameters: their number.
        limits: what to say beyond `DEMO_LIMITS`.
        images: (title, file name) of pictures to show, beside the card.
        repo: folder or Hub name that the card's code loads; default `model_name`.

    Raises:
        ValueError: no figures; a card of the demo states what was measured.
    """
    if not figures or not any(figures.values()):
        raise ValueError("figures is empty: the card of the demo states what was measured")
    measures = list(dict.fromkeys(name for values in figures.values() for name in values))
    results = [
        EvalResult(
            task_type="retrieval",
            task_name="Image-text retrieval",
            dataset_type="emoji-cldr-zh",
            dataset_name=f"Emoji pictures and their Chinese CLDR names: {dataset}",
            dataset_config=_slug(dataset),
            metric_type=_metric_type(measure),
            metric_name=measure,
            metric_value=round(float(value), 2),
        )
        for dataset, values in figures.items()
        for measure, value in values.items()
    ]
    data = ModelCardData(
        language="zh",
        license="other",
        license_name="research-demo",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=[*TAGS, "emoji"],
        model_name=model_name,
        eval_results=results,
    )
    return fill(
        "demo_model.md.jinja",
        data,
        model_name=model_name,
        repo=repo or model_name,
        datasets=list(figures),
        measures=measures,
        figures=figures,
        training=training,
        split=split,
        chance=chance,
        parameters=parameters,
        limits=[*DEMO_LIMITS, *limits],
        images=images,
        transformers_version=transformers.__version__,
    )


def fill(template: str, data: ModelCardData, **values: Any) -> ModelCard:
    return ModelCard.from_template(data, template_path=str(_TEMPLATES / template), **values)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _metric_type(measure: str) -> str:
    """`R@k` within a measure's name makes it a recall; any other measure is called by its own name."""
    match = re.search(r"R@(\d+)", measure)
    return f"recall_at_{match[1]}" if match else _slug(measure).replace("-", "_") or "score"


__all__ = ["DEMO_LIMITS", "PIPELINE_TAG", "TAGS", "demo_card", "fill"]
