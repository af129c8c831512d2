"""Fine-tuning for retrieval: GCPR and FGR, as in the authors' code, with pairs of one caption as positives too.

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import torch
from torch import Tensor
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .pretraining_r2d2 import R2D2ForPreTraining, R2D2ForPreTrainingOutput


class R2D2ForImageTextRetrieval(R2D2ForPreTraining):
    """`R2D2ForPreTraining` without MLM: GCPR on every model, FGR on those with a ranker. Saved, it loads as a plain
    `R2D2Model` (`AutoModel`) too."""

    _keys_to_ignore_on_load_unexpected = [r"^(mlm_head|feature_heads)\."]
    _tied_weights_keys = {}

    def _add_heads(self):
        """None: nothing would train them."""

    def get_output_embeddings(self) -> None:
        """None: there is no vocabulary projection."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        return_loss: bool = True,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2ForPreTrainingOutput:
        """As `R2D2ForPreTraining.forward`.

        Args:
            text_ids: (B,) int64, identity of the captions; pairs of one image id or of one text id are positives of
                each other. None: pictures alone decide.

        Raises:
            ValueError: as there; `text_ids` without `image_ids`.
        """
        if image_ids is not None and text_ids is not None:
            image_ids = torch.stack([image_ids, text_ids], dim=1)
        elif text_ids is not None:
            raise ValueError("text_ids come together with image_ids")
        return super().forward(
            input_ids,
            pixel_values,
            attention_mask,
            image_ids=image_ids,
            return_loss=return_loss,
            token_type_ids=token_type_ids,
            **kwargs,
        )


__all__ = ["R2D2ForImageTextRetrieval"]
