"""R2D2 pre-training: GCPR, FGR and MLM with enhanced training in one forward pass (arXiv 2205.03860).

The authors never released their pre-training code; what the paper leaves open is chosen here, stated beside
the choice, and an option where it matters. This file travels to the Hub beside the weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_r2d2 import R2D2Config
from .distributed_r2d2 import RowExchange, exchange_rows, gather, gather_with_ids, process_index, world_size
from .losses_r2d2 import (
    HardNegatives,
    contrastive_targets,
    draw_hard_negatives,
    hardest_negatives,
    masked_language_modeling_loss,
    match_weights,
    pre_ranking_loss,
    ranking_loss,
    same_identity,
    scaled_similarity,
    soft_cross_entropy,
)
from .modeling_r2d2 import R2D2Model, R2D2Output, normalize


@dataclass
class R2D2TeacherTargets:
    """What a momentum teacher hands into `R2D2ForPreTraining.forward` for target-guided distillation (TgD).

    image_candidates, text_candidates: (N, D) teacher embeddings the student's rows are compared with (the
    batch of all workers, then the queue). image_targets, text_targets: (B, N) soft targets for local images over
    text candidates and for local texts over image candidates, reliability weights included.
    """

    image_candidates: Tensor
    text_candidates: Tensor
    image_targets: Tensor
    text_targets: Tensor


@dataclass
class R2D2ForPreTrainingOutput(R2D2Output):
    """Pre-ranking output plus the parts of the loss (scalars, float32; None where a part did not apply).

    loss: their sum. loss_gcpr: GCPR, the loss of pre-ranking without a teacher. loss_tgd: replaces it where
    teacher targets are given. loss_fgr: ranking. loss_mlm: masked language modelling. ranking_accuracy: share of
    the 3B pairs that the mean of both encoders classifies rightly; on masked texts where the ranker read masked
    ones (enhanced training), on unmasked texts where it did not, as in every evaluation without masking.
    """

    loss_gcpr: Tensor | None = None
    loss_tgd: Tensor | None = None
    loss_fgr: Tensor | None = None
    loss_mlm: Tensor | None = None
    ranking_accuracy: Tensor | None = None
    temperature: Tensor | None = None


class R2D2MLMHead(nn.Module):
    """Transform, LayerNorm and vocabulary projection on states of the text-image encoder: (M, D) -> (M, V)."""

    def __init__(self, config: R2D2Config):
        super().__init__()
        cross = config.cross_encoder_config
        self.dense = nn.Linear(cross.hidden_size, cross.hidden_size)
        self.activation = ACT2FN[cross.hidden_act]
        self.layer_norm = nn.LayerNorm(cross.hidden_size, eps=cross.layer_norm_eps)
        self.decoder = nn.Linear(cross.hidden_size, config.text_config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


class R2D2ForPreTraining(R2D2Model):
    """R2D2Model with the pre-training objectives; loads from and saves to the same weights, plus `mlm_head`."""

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = []
    _tied_weights_keys = {"mlm_head.decoder.weight": "text_model.embeddings.word_embeddings.weight"}

    def _add_heads(self):
        if self.can_rank:
            self.mlm_head = R2D2MLMHead(self.config)
        else:
            self._tied_weights_keys = None

    def get_output_embeddings(self) -> nn.Module | None:
        """The MLM head's vocabulary projection, None on a model without a ranker."""
        return self.mlm_head.decoder if self.can_rank else None

    def set_output_embeddings(self, new_embeddings: nn.Module):
        """Replace the MLM head's vocabulary projection."""
        self.mlm_head.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_ids: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        teacher: R2D2TeacherTargets | None = None,
        hard_negatives: HardNegatives | None = None,
        return_loss: bool = True,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2ForPreTrainingOutput:
        """All objectives of B aligned pairs per worker: Total = GCPR (or TgD) + FGR + MLM.

        Args:
            input_ids, attention_mask: (B, L). pixel_values: (B, 3, H, W).
            image_ids: (B,) int64; pairs of one id are positives of each other. None: all differ.
            masked_input_ids: (B, L) with masked tokens, mlm_labels: (B, L) with -100 where nothing was masked.
                Without them there is no MLM and ranking reads the unmasked texts.
            teacher: targets for TgD, which then replaces GCPR.
            hard_negatives: indices into the batch of all workers. None: drawn while training, the hardest ones
                in evaluation mode, so that its losses are reproducible.
            return_loss: False leaves pre-ranking alone, for images and texts of any number.

        Raises:
            ValueError: unequal numbers of images, texts or ids; `masked_input_ids` without `mlm_labels`.
        """
        if not return_loss:
            outputs = super().forward(input_ids, pixel_values, attention_mask, token_type_ids=token_type_ids, **kwargs)
            return R2D2ForPreTrainingOutput(**outputs)
        if (masked_input_ids is None) != (mlm_labels is None):
            raise ValueError("masked_input_ids and mlm_labels come together")
        if not len(input_ids) == len(pixel_values) == len(input_ids if image_ids is None else image_ids):
            raise ValueError(
                f"pre-training pairs image i with text i: {len(pixel_values)} images, {len(input_ids)} texts"
                + ("" if image_ids is None else f", {len(image_ids)} image_ids")
            )
        masked = masked_input_ids is not None and self.can_rank
        vision = self.get_image_features(pixel_values, **kwargs)
        if masked:  # masked and unmasked texts share one pass of the text tower
            both = self.get_text_features(
                torch.cat([input_ids, masked_input_ids]),
                None if attention_mask is None else attention_mask.repeat(2, 1),
                token_type_ids=None if token_type_ids is None else token_type_ids.repeat(2, 1),
                **kwargs,
            )
            text_states, masked_states = both.last_hidden_state.chunk(2)
            text_embeds = normalize(both.pooler_output[: len(input_ids)])
        else:
            text = self.get_text_features(input_ids, attention_mask, token_type_ids=token_type_ids, **kwargs)
            text_states = masked_states = text.last_hidden_state
            text_embeds = normalize(text.pooler_output)
        image_embeds = normalize(vision.pooler_output)

        temperature = self.bounded_temperature()
        batch = len(input_ids)
        embeds = torch.cat([image_embeds, text_embeds], dim=1)
        if image_ids is None:
            gathered = gather(embeds)
            positives = torch.zeros((batch, len(gathered)), dtype=torch.bool, device=embeds.device)
            positives.diagonal(process_index() * batch).fill_(True)
        else:
            gathered, all_ids = gather_with_ids(embeds, image_ids)
            positives = same_identity(image_ids, all_ids)
        all_images, all_texts = gathered.chunk(2, dim=1)
        logits_per_image = scaled_similarity(image_embeds, all_texts, temperature)
        logits_per_text = scaled_similarity(text_embeds, all_images, temperature)
        losses = {}
        if teacher is None:
            targets = contrastive_targets(positives)
            losses["loss_gcpr"] = pre_ranking_loss(logits_per_image, logits_per_text, targets)
        else:
            losses["loss_tgd"] = self._target_guided_loss(image_embeds, text_embeds, teacher)
        accuracy = None
        if self.can_rank:
            if hard_negatives is None:
                pick = draw_hard_negatives if self.training else hardest_negatives
                hard_negatives = pick(logits_per_image, logits_per_text, positives)
            ranking_losses, accuracy = self._ranking_losses(
                text_states,
                masked_states,
                vision.last_hidden_state,
                attention_mask,
                mlm_labels,
                hard_negatives,
            )
            losses.update(ranking_losses)
        return R2D2ForPreTrainingOutput(
            loss=self._total(losses),
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            ranking_accuracy=accuracy,
            temperature=temperature.detach().clone(),
            **losses,
        )

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        config = self.config
        weights = {"loss_fgr": config.fgr_weight, "loss_mlm": config.mlm_weight}
        return sum(weights.get(name, config.gcpr_weight) * loss for name, loss in losses.items())

    def _target_guided_loss(self, image_embeds: Tensor, text_embeds: Tensor, teacher: R2D2TeacherTargets) -> Tensor:
        """TgD: ½ [ H(ŷ_I, softmax s(I, T̂)/τ) + H(ŷ_T, softmax s(T, Î)/τ) ] over the teacher's candidates."""
        temperature = self.bounded_temperature()
        image_logits = scaled_similarity(image_embeds, teacher.text_candidates, temperature)
        text_logits = scaled_similarity(text_embeds, teacher.image_candidates, temperature)
        image_loss = soft_cross_entropy(image_logits, teacher.image_targets).mean()
        text_loss = soft_cross_entropy(text_logits, teacher.text_targets).mean()
        return (image_loss + text_loss) / 2

    def _ranking_losses(
        self,
        text_states: Tensor,
        masked_states: Tensor,
        image_states: Tensor,
        attention_mask: Tensor | None,
        mlm_labels: Tensor | None,
        negatives: HardNegatives,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """FGR over B true pairs, B (text, negative image) and B (negative text, image), and MLM on the true
        pairs' states of the same pass. Returns the losses and the ranking accuracy."""
        batch = len(text_states)
        own = torch.arange(batch, device=text_states.device)
        negative_text, negative_image = negatives.text_index, negatives.image_index
        queries = masked_states if self.config.rank_masked_texts else text_states
        if world_size() > 1:
            if attention_mask is None:
                attention_mask = torch.ones(text_states.shape[:2], dtype=torch.int64, device=own.device)
            (queries, text_states, attention_mask, image_states), negative_text, negative_image = fetch_drawn_states(
                queries, text_states, attention_mask, image_states, negatives
            )
        mlm = mlm_labels is not None
        shared_pass = mlm and self.config.rank_masked_texts
        output = self._rank(
            queries,
            text_states,
            image_states,
            attention_mask,
            text_index=torch.cat([own, own, negative_text]),
            image_index=torch.cat([own, negative_image, own]),
            full_text_pairs=batch if shared_pass else 0,
            full_image_pairs=0,
        )
        labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
        present = torch.cat([torch.ones_like(negatives.valid), negatives.valid, negatives.valid]).float()
        losses = {
            "loss_fgr": ranking_loss(
                output.text_match_logits, output.image_match_logits, labels, match_weights(labels) * present
            )
        }
        if mlm:
            if shared_pass:
                states = output.text_cross_output.full_hidden_state[:, : mlm_labels.shape[1]]
            else:
                mask = None if attention_mask is None else attention_mask[:batch, : masked_states.shape[1]]
                states = self.text_image_encoder(masked_states, image_states[:batch], mask).last_hidden_state
            is_masked = mlm_labels != -100
            logits = self.mlm_head(states[is_masked])
            losses["loss_mlm"] = masked_language_modeling_loss(logits, mlm_labels[is_masked])
        right = ((output.match_probability > 0.5) == labels.bool()).float() * present
        return losses, (right.sum() / present.sum()).detach()


def fetch_drawn_states(
    queries: Tensor, text_states: Tensor, attention_mask: Tensor, image_states: Tensor, negatives: HardNegatives
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Beside the local rows, those of other workers that were drawn, and only those.

    Args:
        queries, text_states: (B, L, D), attention_mask: (B, L), image_states: (B, N, E); L may differ by worker.

    Returns:
        the four with the fetched rows behind the local ones, texts padded to the longest of all workers; and the
        drawn texts and images (B,) as indices into them.
    """
    batch, length = text_states.shape[:2]
    wanted = torch.cat([negatives.text_index, negatives.image_index, negatives.text_index.new_tensor([length])])
    wanted = gather(wanted).view(world_size(), -1)
    missing = int(wanted[:, -1].max()) - length
    texts = RowExchange(negatives.text_index, wanted[:, :batch])
    images = RowExchange(negatives.image_index, wanted[:, batch:-1])
    mask = attention_mask.unsqueeze(-1).to(text_states.dtype)
    same = queries is text_states  # ranking on unmasked texts: sent once
    padded = [nn.functional.pad(t, (0, 0, 0, missing)) for t in (text_states, mask, *([] if same else [queries]))]
    (text_states, mask, *masked), (image_states,) = exchange_rows((texts, padded), (images, [image_states]))
    queries = masked[0] if masked else text_states
    states = (queries, text_states, mask.squeeze(-1).long(), image_states)
    return states, texts.position, images.position


__all__ = ["R2D2ForPreTraining", "R2D2ForPreTrainingOutput", "R2D2TeacherTargets"]
