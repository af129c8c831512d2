"""Fine-tuning for retrieval: GCPR and FGR, as in the authors' code, with pairs of one caption as positives too.

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import torch
from torch import Tensor
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .distributed_r2d2 import gather
from .losses_r2d2 import contrastive_targets, pre_ranking_loss, same_identity, scaled_similarity
from .pretraining_r2d2 import R2D2ForPreTraining, R2D2ForPreTrainingOutput, R2D2TargetGuidance


def multi_positives(ids: Tensor, all_ids: Tensor) -> Tensor:
    """(B, N) boolean: pairs of the same picture, or with the same caption. ids (B, 2), all_ids (N, 2) int64: of the
    picture and of the caption.

    The paper's code takes pictures alone: two pictures with the caption 猫 are then negatives of one another, which
    small sets repeat in every batch.
    """
    images, texts = (same_identity(ids[:, k], all_ids[:, k]) for k in (0, 1))
    return images | texts


class R2D2ForImageTextRetrieval(R2D2ForPreTraining):
    """`R2D2ForPreTraining` without MLM: GCPR on every model, FGR on those with a ranker. Saved, it loads as a plain
    `R2D2Model` (`AutoModel`) too."""

    _keys_to_ignore_on_load_unexpected = [r"^mlm_head\."]
    _tied_weights_keys = {}

    def _add_heads(self):
        """No MLM head: nothing would train it."""

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

    def compare_pairs(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_ids: Tensor | None = None,
        guidance: R2D2TargetGuidance | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """As in `R2D2ForPreTraining`; `image_ids` may be (B, 2), of pictures and captions."""
        if image_ids is None or image_ids.dim() == 1:
            return super().compare_pairs(image_embeds, text_embeds, image_ids, guidance)
        temperature = self.bounded_temperature()
        all_images, all_texts = gather(torch.cat([image_embeds, text_embeds], dim=1)).chunk(2, dim=1)
        positives = multi_positives(image_ids, gather(image_ids))
        logits_per_image = scaled_similarity(image_embeds, all_texts, temperature)
        logits_per_text = scaled_similarity(text_embeds, all_images, temperature)
        loss = pre_ranking_loss(logits_per_image, logits_per_text, contrastive_targets(positives))
        return logits_per_image, logits_per_text, positives, {"loss_gcpr": loss}


__all__ = ["R2D2ForImageTextRetrieval", "multi_positives"]
