"""What the page runs on: a model, maybe an index of pictures, maybe a text-to-image pipeline."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..inference.loading import load_part
from ..inference.models import load_model
from ..inference.scoring import ScoreRule
from ..model.pipeline_zero_shot_image_classification import R2D2ZeroShotImageClassificationPipeline
from ..processing.files.printable import printable
from ..search import Calibration, R2D2Retriever

if TYPE_CHECKING:
    from ..model.pipeline_text_to_image import R2D2TextToImagePipeline


@dataclass(frozen=True)
class AppModels:
    """What `r2d2 app` was given, loaded.

    Args:
        retriever: with or without an index.
        classify: the zero-shot pipeline on the same weights.
        name: what the page calls the model.
        text_to_image: None: the page draws nothing.
    """

    retriever: R2D2Retriever
    classify: R2D2ZeroShotImageClassificationPipeline
    name: str
    text_to_image: "R2D2TextToImagePipeline | None" = None

    @classmethod
    def open(
        cls,
        model: str | PathLike | None = None,
        index: str | PathLike | None = None,
        text_to_image: str | PathLike | None = None,
        device: str | torch.device | None = None,
        calibrated: bool = True,
        verify: bool = True,
        score: ScoreRule | None = None,
    ) -> "AppModels":
        """Load everything before the page opens, so that what is wrong is said at once.

        Args:
            model: folder or Hub name of an R2D2 or PRD2, or a folder that `r2d2 export` wrote; None: the model that the
                index names.
            index: that `r2d2 index` made.
            text_to_image: a saved `R2D2TextToImagePipeline`.
            calibrated: use the model's calibration, if it has one.
            verify: compare the index's checksums.
            score: what orders hits and drawn pictures, see `R2D2Retriever.search`.

        Raises:
            ValueError: neither model nor index; or as `R2D2Retriever.open`.
            OSError: no such model.
            ImportError: `text_to_image` without the extra `[diffusers]`.
        """
        if index is not None:
            retriever = R2D2Retriever.open(
                index, model, device=device, calibrated=calibrated, verify=verify, score=score
            )
        elif model is None:
            raise ValueError("the page needs a model: --model DIR, or --index INDEX, which knows its model")
        else:
            network, processor = load_model(model, device=device)
            calibration = Calibration.of_model(model, network) if calibrated else None
            retriever = R2D2Retriever(network, processor, calibration=calibration, score=score)
        classify = R2D2ZeroShotImageClassificationPipeline(
            model=retriever.model,
            tokenizer=retriever.processor.tokenizer,
            image_processor=retriever.processor.image_processor,
            device=retriever.model.device,
        )
        draws = None if text_to_image is None else _open_text_to_image(text_to_image, device)
        place = Path(model or retriever.model.config.name_or_path)
        return cls(retriever, classify, printable(place.name or str(place)), draws)

    @property
    def can_search(self) -> bool:
        """Whether there is an index."""
        return self.retriever.index is not None

    @property
    def images(self) -> int:
        """Pictures in the index; 0 without one."""
        return 0 if self.retriever.index is None else len(self.retriever.index)

    @property
    def can_rank(self) -> bool:
        """Whether the model has a ranker; a PRD2 has none."""
        return self.retriever.ranker is not None


def _open_text_to_image(folder: str | PathLike, device: str | torch.device | None) -> "R2D2TextToImagePipeline":
    try:
        from ..model.pipeline_text_to_image import R2D2TextToImagePipeline
    except ImportError as error:
        raise ImportError("text-to-image needs diffusers: pip install 'modeling-r2d2[diffusers]'") from error

    # A saved ranker would need remote code, and the page's own model judges the pictures.
    pipeline = load_part(R2D2TextToImagePipeline, folder, ranker=None, ranker_processor=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline if device is None else pipeline.to(device)
