"""The card of a checkpoint that was converted."""

import transformers
from huggingface_hub import ModelCard, ModelCardData

from ..hub_cards.cards import PIPELINE_TAG, TAGS, fill
from ..model.configuration_r2d2 import R2D2Config
from .checkpoints import ConversionReport


def converted_card(
    config: R2D2Config,
    report: ConversionReport,
    *,
    model_name: str,
    checkpoint: str,
    sha256: str,
    source: str | None = None,
    parameters: int | None = None,
) -> ModelCard:
    """The card of a checkpoint in the authors' format that was converted.

    Args:
        config: of the conversion.
        report: of the conversion.
        model_name: how the card calls the model.
        checkpoint: file name of the checkpoint, sha256: its digest.
        source: where it was obtained, as far as the user said.
        parameters: their number.
    """
    kind = "PRD2" if config.cross_encoder_config is None else "R2D2"
    data = ModelCardData(
        language="zh",
        license="other",
        license_name="not-stated-in-the-checkpoint",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        tags=[kind.lower(), *TAGS],
    )
    return fill(
        "converted_model.md.jinja",
        data,
        kind=kind,
        model_name=model_name,
        checkpoint=checkpoint,
        sha256=sha256,
        source=source,
        parameters=parameters,
        config=config,
        report=report,
        unused=report.unused_by_reason(),
        transformers_version=transformers.__version__,
    )
