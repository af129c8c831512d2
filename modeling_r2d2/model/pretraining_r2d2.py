"""R2D2 pre-training: all objectives in one forward pass (arXiv 2205.03860).

GCPR or, with a teacher's targets, TgD; FGR; MLM with enhanced training; and FgD.

The authors never released their pre-training code; what the paper leaves open is chosen here, stated beside
the choice, and an option where it matters. This file travels to the Hub beside the weights.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .batch_norms_r2d2 import batch_norms, constant_running_statistics
from .configuration_r2d2 import R2D2Config
from .distillation_losses_r2d2 import feature_guided_loss, target_guided_loss
from .distributed_r2d2 import RowExchange, exchange_rows, gather, world_size
from .feature_heads_r2d2 import R2D2FeatureHeads, bottleneck_size
from .losses_r2d2 import (
    GlobalComparison,
    HardNegatives,
    compare_globally,
    contrastive_targets,
    draw_hard_negatives,
    hardest_negatives,
    masked_language_modeling_loss,
    match_weights,
    pre_ranking_loss,
    ranking_loss,
    scaled_similarity,
)
from .masked_images_r2d2 import drops_patches, gray_blocks, keep_patches, mask_grid
from .modeling_r2d2 import RANKER, R2D2Model, R2D2Output
from .ranges_r2d2 import SEVERAL, require_number
from .two_towers_r2d2 import mean_of_tokens, normalize, refuse_missing, require_ranker


@dataclass
class R2D2TargetGuidance:
    """What a momentum teacher hands in for target-guided distillation (TgD), which then replaces GCPR.

    Args:
        image_candidates: (N, D) teacher embeddings the student's rows are compared with (the batch of all workers and a
            queue).
        text_candidates: as `image_candidates`.
        image_targets: (B, N) of `soft_targets`, for local images over text candidates and for local texts over image
            candidates.
        text_targets: as `image_targets`.
        log_reliability: (N,) is added to the student's logits where the reliability enters there.
    """

    image_candidates: Tensor
    text_candidates: Tensor
    image_targets: Tensor
    text_targets: Tensor
    log_reliability: Tensor | None = None


@dataclass
class R2D2FeatureGuidance:
    """What a momentum teacher hands in for feature-guided distillation (FgD).

    Args:
        image_targets: (B, K) of `teacher_distribution` on whole inputs.
        text_targets: (B, K) of `teacher_distribution` on whole inputs.
        kept: (B, V) int64, the patches (or, in towers that cannot leave patches out, the blocks of pixels of `block` a
            side) that the student sees.
        temperature: τ_s.
    """

    image_targets: Tensor
    text_targets: Tensor
    kept: Tensor
    temperature: float = 0.1
    block: int = 32


@dataclass
class R2D2TeacherTargets:
    """A teacher's targets for `R2D2ForPreTraining.forward`; None leaves an objective out."""

    target_guided: R2D2TargetGuidance | None = None
    feature_guided: R2D2FeatureGuidance | None = None


@dataclass
class R2D2PairFeatures:
    """What the towers make of B pairs: states (B, N, E) and (B, L, D), L2-normalised embeddings (B, P);
    `masked_states` (B, L, D) of the masked texts and `text_student` (B, K), what FgD compares of them, None without."""

    image_states: Tensor
    image_embeds: Tensor
    text_states: Tensor
    text_embeds: Tensor
    masked_states: Tensor | None = None
    text_student: Tensor | None = None


@dataclass
class R2D2ForPreTrainingOutput(R2D2Output):
    """Pre-ranking output plus the parts of the loss (scalars, float32; None where a part did not apply).

    loss: their sum.

    Args:
        loss_gcpr: GCPR, the loss of pre-ranking without a teacher.
        loss_tgd: replaces it where teacher targets are given.
        loss_fgr: ranking.
        loss_mlm: masked language modelling.
        loss_fgd: features of masked inputs against the teacher's of whole ones.
        ranking_accuracy: share of the 3B pairs that the mean of both encoders classifies rightly; on masked texts where
            the ranker read masked ones (enhanced training), on unmasked texts where it did not, as in every evaluation
            without masking.
    """

    loss_gcpr: Tensor | None = None
    loss_tgd: Tensor | None = None
    loss_fgr: Tensor | None = None
    loss_mlm: Tensor | None = None
    loss_fgd: Tensor | None = None
    ranking_accuracy: Tensor | None = None
    temperature: Tensor | None = None


class R2D2MLMHead(nn.Module):
    """Transform, LayerNorm and vocabulary projection on states of the text-image encoder: (M, D) -> (M, V)."""

    def __init__(self, config: R2D2Config):
        super().__init__()
        cross = config.cross_encoder_config
        assert cross is not None  # a model without a ranker has no such head
        self.dense = nn.Linear(cross.hidden_size, cross.hidden_size)
        self.activation = ACT2FN[cross.hidden_act]
        self.layer_norm = nn.LayerNorm(cross.hidden_size, eps=cross.layer_norm_eps)
        self.decoder = nn.Linear(cross.hidden_size, config.text_config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.layer_norm(self.activation(self.dense(hidden_states))))


class _SignatureWithoutLabels(inspect.Signature):
    """Of a function: its parameters but those with "label" in their names. Of the method of an object: all of them."""

    def __init__(self, whole: inspect.Signature):
        unlabelled = [p for name, p in whole.parameters.items() if "label" not in name]
        super().__init__(unlabelled, return_annotation=whole.return_annotation)
        self._whole = whole

    def replace(self, *arguments: Any, **changes: Any) -> Any:
        """What `inspect.signature` asks of a method, which is bound to its first parameter."""
        return self._whole.replace(parameters=list(self._whole.parameters.values())[1:])


def _loss_without_labels(forward: Any) -> Any:
    """Decorates a `forward` that has a loss without its labels too, so that transformers' Trainer evaluates it.

    Trainer asks the class for the parameters of `forward` with "label" in their names, and computes no loss of a batch
    that lacks one of them; it asks the model which columns of the data `forward` reads.
    """
    forward.__signature__ = _SignatureWithoutLabels(inspect.signature(forward))
    return forward


class R2D2ForPreTraining(R2D2Model):
    """R2D2Model with the pre-training objectives; loads from and saves to the same weights, plus `mlm_head` and, where
    the configuration asks for them (`fgd_prototypes`), `feature_heads`.

    loss = GCPR + FGR + MLM (arXiv 2205.03860), or TgD + FGR + MLM + FgD with a teacher's targets, each by its weight
    in the configuration; on a model without a ranker (PRD2) GCPR, or TgD + FgD. The distillation callbacks hand the
    targets in; without them the model trains in any Trainer. The authors published no pre-training code: what their
    paper leaves open is chosen here and said where it is.
    """

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = []
    _tied_weights_keys = {"mlm_head.decoder.weight": "text_model.embeddings.word_embeddings.weight"}
    #: False leaves FGR and MLM out of training, with all that they alone compute: a curriculum sets it
    #: (`training.curriculum`). Evaluation has them all the same.
    ranking_active: bool = True
    #: β: while training, hard negatives are drawn with probability softmax(β · s/τ). 1 as in the paper; a curriculum
    #: may begin below.
    negative_sharpness: float = 1.0
    #: Whether `freeze_towers` was called.
    towers_frozen: bool = False

    def _add_heads(self):
        self._tied_weights_keys = {}
        if self.can_rank:
            self.mlm_head = R2D2MLMHead(self.config)
            embeddings = self.text_model.get_input_embeddings().weight
            if embeddings.shape == self.mlm_head.decoder.weight.shape:  # an AltCLIP's are wider than its states
                name = next(name for name, each in self.text_model.named_parameters() if each is embeddings)
                self._tied_weights_keys = {"mlm_head.decoder.weight": f"text_model.{name}"}
        if self.config.fgd_prototypes:
            self.feature_heads = R2D2FeatureHeads(self.config)

    @property
    def has_feature_heads(self) -> bool:
        """Whether it can train by feature-guided distillation."""
        return hasattr(self, "feature_heads")

    def add_feature_heads(self, prototypes: int | None = None):
        """Give a model that was made without them the heads of feature-guided distillation, at random, and note in its
        configuration that it has them. To be done before an optimizer is made; the distillation callbacks do it when
        a Trainer is made.

        Args:
            prototypes: K of each. None: 16 for every dimension of the bottleneck, so 4,096 for towers of 256 and more
                (ours; DINO has 65,536 for ImageNet).

        Raises:
            ValueError: it has them, or there are less than 2 prototypes.
        """
        if self.has_feature_heads:
            raise ValueError(f"this model has feature heads, of {self.config.fgd_prototypes} prototypes")
        prototypes = 16 * bottleneck_size(self.config) if prototypes is None else prototypes
        require_number("prototypes", prototypes, **SEVERAL)
        self.config.fgd_prototypes = prototypes
        heads = R2D2FeatureHeads(self.config)
        for module in heads.modules():
            self._init_weights(module)
        self.feature_heads = heads.to(self.temperature.device, self.dtype).train(self.training)

    def freeze_towers(self, masked_texts: bool = False) -> "R2D2ForPreTraining":
        """Train the ranker alone: towers, projections and temperature get no gradient, and the towers stay in
        evaluation mode (no dropout; running statistics do not move). To be done before an optimizer is made.

        Args:
            masked_texts: whether MLM trains its head; where that is tied to the text tower's embeddings, not these.

        Raises:
            ValueError: a model without a ranker.
        """
        require_ranker(self.config)
        trained = (*RANKER, *["mlm_head"] * masked_texts)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in trained)
        self.towers_frozen = True
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but frozen towers stay in evaluation mode."""
        super().train(mode)
        if self.towers_frozen:
            self.vision_model.eval()
            self.text_model.eval()
        return self

    @property
    def trains_ranking(self) -> bool:
        """Whether the loss of the model as it is now has the ranking losses, FGR and MLM."""
        return self.can_rank and (self.ranking_active or not self.training)

    def get_output_embeddings(self) -> nn.Module | None:
        """The MLM head's vocabulary projection, None on a model without a ranker."""
        return self.mlm_head.decoder if self.can_rank else None

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        """Replace the MLM head's vocabulary projection."""
        self.mlm_head.decoder = new_embeddings

    @_loss_without_labels
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
        valid_negatives: Tensor | None = None,
        image_states: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2ForPreTrainingOutput:
        """All objectives of B aligned pairs per worker: Total = GCPR (or TgD) + FGR + MLM (+ FgD), each weighted.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            pixel_values: (B, 3, H, W).
            image_ids: (B,) int64; pairs of one id are positives of each other. None: all differ.
            masked_input_ids: (B, L) with masked tokens, mlm_labels: (B, L) with -100 where nothing was masked.
                Without them there is no MLM and ranking reads the unmasked texts.
            teacher: targets for TgD, which then replaces GCPR, and for FgD.
            hard_negatives: indices into the batch of all workers. None: drawn while training, the hardest ones
                in evaluation mode, so that its losses are reproducible.
            return_loss: False leaves pre-ranking alone, for images and texts of any number, also of one kind alone.
            valid_negatives: (B,) boolean where the batch brings its hard negatives along: images and texts are 2B then,
                B true pairs, and behind them as pair B + i a wrong image for text i and a wrong text for image i; False
                where pair i has none. The loss is that of the ranking alone. `mlm_labels` are of the true pairs.
            image_states: (2B, N, E) of such a batch, encoded before, instead of `pixel_values`.

        Raises:
            ValueError: images or texts missing, unequal numbers of images, texts or ids; `masked_input_ids` without
                `mlm_labels`; FgD without masked texts or without heads.
        """
        if not return_loss:
            given = {**kwargs, "token_type_ids": token_type_ids, "return_dict": True}
            outputs = super().forward(input_ids, pixel_values, attention_mask, **given)
            return R2D2ForPreTrainingOutput(**outputs)
        if valid_negatives is not None:
            texts = (input_ids, attention_mask, masked_input_ids, token_type_ids)
            return self._rank_with_negatives(*texts, mlm_labels, pixel_values, image_states, valid_negatives, **kwargs)
        refuse_missing(pixel_values, input_ids, "pre-training (return_loss, the default here)")
        input_ids, pixel_values = cast(Tensor, input_ids), cast(Tensor, pixel_values)
        if (masked_input_ids is None) != (mlm_labels is None):
            raise ValueError("masked_input_ids and mlm_labels come together")
        if not len(input_ids) == len(pixel_values) == len(input_ids if image_ids is None else image_ids):
            raise ValueError(
                f"pre-training pairs image i with text i: {len(pixel_values)} images, {len(input_ids)} texts"
                + ("" if image_ids is None else f", {len(image_ids)} image_ids")
            )
        teacher = teacher or R2D2TeacherTargets()
        guidance = teacher.feature_guided
        features = self.encode_pairs(
            input_ids,
            pixel_values,
            attention_mask,
            masked_input_ids,
            feature_guided=guidance is not None,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        found, losses = self.compare_pairs(
            features.image_embeds, features.text_embeds, image_ids, teacher.target_guided
        )
        accuracy = None
        if self.trains_ranking:
            if hard_negatives is None:
                hard_negatives = self.pick_negatives(*found)
            ranking_losses, accuracy = self._ranking_losses(features, attention_mask, mlm_labels, hard_negatives)
            losses.update(ranking_losses)
        if guidance is not None:
            assert features.text_student is not None  # `encode_pairs` gives it, or refuses
            image_student = self.encode_masked_images(pixel_values, guidance, **kwargs)
            losses["loss_fgd"] = self.feature_guided_loss(image_student, features.text_student, guidance)
        return R2D2ForPreTrainingOutput(
            loss=self.total_loss(losses),
            logits_per_image=found.logits_per_image,
            logits_per_text=found.logits_per_text,
            text_embeds=features.text_embeds,
            image_embeds=features.image_embeds,
            ranking_accuracy=accuracy,
            temperature=self.current_temperature(),
            **cast(dict[str, Any], losses),
        )

    def _rank_with_negatives(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        masked_input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        mlm_labels: Tensor | None,
        pixel_values: Tensor | None,
        image_states: Tensor | None,
        valid: Tensor,
        **kwargs: Any,
    ) -> R2D2ForPreTrainingOutput:
        """FGR and MLM of a batch that brings its negatives along, see `forward`."""
        require_ranker(self.config)
        images = pixel_values if image_states is None else image_states
        refuse_missing(images, input_ids, "ranking")
        input_ids, images, batch = cast(Tensor, input_ids), cast(Tensor, images), len(valid)
        if not len(input_ids) == len(images) == 2 * batch:
            raise ValueError(
                f"{batch} pairs and their negatives are {2 * batch} images and texts; there are {len(images)} images "
                f"and {len(input_ids)} texts"
            )
        if image_states is None:
            image_states = self.get_image_features(images, **{**kwargs, "return_dict": True}).last_hidden_state
        states, _, masked_states = self._encode_texts(
            input_ids, attention_mask, masked_input_ids, token_type_ids, **kwargs
        )
        behind = torch.arange(batch, 2 * batch, device=states.device)
        losses, accuracy = self.rank_pairs(
            states if masked_states is None or not self.config.rank_masked_texts else masked_states,
            states,
            image_states.to(states.device),
            attention_mask,
            HardNegatives(behind, behind, valid),
            (states if masked_states is None else masked_states)[:batch],
            mlm_labels,
        )
        return R2D2ForPreTrainingOutput(
            loss=self.total_loss(losses),
            ranking_accuracy=accuracy,
            temperature=self.current_temperature(),
            **cast(dict[str, Any], losses),
        )

    def encode_pairs(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        feature_guided: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2PairFeatures:
        """The towers on whole images, and on whole and masked texts in one pass; that pass serves FgD, MLM and the
        ranking of enhanced training alike.

        Args:
            feature_guided: whether FgD compares the masked texts.

        Raises:
            ValueError: FgD without masked texts, or on a model without heads.
        """
        if feature_guided and masked_input_ids is None:
            raise ValueError(
                "feature-guided distillation compares masked texts: give the batch masked_input_ids and mlm_labels "
                "(TextMasking in the collation, mask_ratio above 0)"
            )
        vision = self.get_image_features(pixel_values, **{**kwargs, "return_dict": True})
        image_states, image_embeds = vision.last_hidden_state, normalize(vision.pooler_output)
        if not (self.trains_ranking or feature_guided):
            masked_input_ids = None
        texts = self._encode_texts(input_ids, attention_mask, masked_input_ids, token_type_ids, **kwargs)
        text_states, text_embeds, masked_states = texts
        student = None
        if feature_guided:
            assert masked_states is not None  # refused above
            student = self._compared_texts(masked_states, attention_mask)
        return R2D2PairFeatures(image_states, image_embeds, text_states, text_embeds, masked_states, student)

    def _encode_texts(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        masked_input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """States (B, L, D) and embeddings (B, P) of texts, and in the same pass states (B, L, D) of the masked ones."""
        more = {**kwargs, "return_dict": True}  # whatever the configuration says
        if masked_input_ids is None:
            text = self.get_text_features(input_ids, attention_mask, token_type_ids=token_type_ids, **more)
            return text.last_hidden_state, normalize(text.pooler_output), None
        text = self.get_text_features(
            torch.cat([input_ids, masked_input_ids]),
            None if attention_mask is None else attention_mask.repeat(2, 1),
            token_type_ids=None if token_type_ids is None else token_type_ids.repeat(2, 1),
            **more,
        )
        text_states, masked_states = text.last_hidden_state.chunk(2)
        return text_states, normalize(text.pooler_output[: len(input_ids)]), masked_states

    def encode_masked_images(self, pixel_values: Tensor, guidance: R2D2FeatureGuidance, **kwargs) -> Tensor:
        """The cosines (B, K) that FgD compares, of images (B, 3, H, W) of which only `guidance.kept` is seen; a ViT
        computes those patches alone."""
        vision_config = self.config.vision_config
        height, width = pixel_values.shape[-2:]
        grid = mask_grid(vision_config, (height, width), guidance.block)
        kwargs["return_dict"] = True  # whatever the configuration says
        if drops_patches(vision_config):
            with keep_patches(self.vision_model, guidance.kept, grid[0] * grid[1]):
                outputs = self.get_image_features(pixel_values, **kwargs)
        else:
            # the running statistics stay those of whole images
            with constant_running_statistics(batch_norms(self.vision_model).values()):
                outputs = self.get_image_features(gray_blocks(pixel_values, guidance.kept, grid), **kwargs)
        return self._compared_images(outputs.last_hidden_state)

    def _compared_images(self, states: Tensor) -> Tensor:
        return self.require_feature_heads().image(states[:, 0] if self.config.has_class_token else states.mean(dim=1))

    def _compared_texts(self, states: Tensor, attention_mask: Tensor | None) -> Tensor:
        mask = None if self.config.attend_padding else attention_mask
        first = self.config.text_pooling == "cls"
        return self.require_feature_heads().text(states[:, 0] if first else mean_of_tokens(states, mask))

    def compared_features(
        self, image_states: Tensor, text_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What FgD compares of the towers' states (B, N, E) and (B, L, D): the cosines (B, K) of what pre-ranking reads
        of them with the prototypes of their heads. `attention_mask` (B, L) is nonzero on real tokens.

        Raises:
            ValueError: a model without heads.
        """
        return self._compared_images(image_states), self._compared_texts(text_states, attention_mask)

    def require_feature_heads(self) -> R2D2FeatureHeads:
        """Its heads.

        Raises:
            ValueError: it has none; says how to make them.
        """
        if not self.has_feature_heads:
            raise ValueError(
                "feature-guided distillation compares by heads of its own, which this model lacks: make it with "
                "R2D2Config(fgd_prototypes=4096), or call model.add_feature_heads() before an optimizer is made (a "
                "Trainer that is made with the callback, and without an optimizer, does)"
            )
        return self.feature_heads

    def compare_pairs(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        image_ids: Tensor | None = None,
        guidance: R2D2TargetGuidance | None = None,
    ) -> tuple[GlobalComparison, dict[str, Tensor]]:
        """Pre-ranking over the batch of all workers.

        Args:
            image_embeds: (B, D), L2-normalised.
            text_embeds: (B, D), L2-normalised.
            image_ids: (B,) or, of several kinds, (B, K); see `compare_globally`.
            guidance: a teacher's.

        Returns:
            what was compared, and loss_gcpr or loss_tgd.
        """
        temperature = self.bounded_temperature()
        found = compare_globally(image_embeds, text_embeds, temperature, image_ids)
        if guidance is None:
            loss = pre_ranking_loss(found.logits_per_image, found.logits_per_text, contrastive_targets(found.positives))
            return found, {"loss_gcpr": loss}
        guided_images = scaled_similarity(image_embeds, guidance.text_candidates, temperature)
        guided_texts = scaled_similarity(text_embeds, guidance.image_candidates, temperature)
        if guidance.log_reliability is not None:
            guided_images = guided_images + guidance.log_reliability
            guided_texts = guided_texts + guidance.log_reliability
        loss = target_guided_loss(guided_images, guided_texts, guidance.image_targets, guidance.text_targets)
        return found, {"loss_tgd": loss}

    def current_temperature(self) -> Tensor:
        """τ without gradient, within its bounds."""
        return self.temperature.detach().float().clamp(self.config.temperature_min, self.config.temperature_max)

    def pick_negatives(self, logits_per_image: Tensor, logits_per_text: Tensor, positives: Tensor) -> HardNegatives:
        """Drawn while training, by softmax(`negative_sharpness` · s/τ); the hardest ones in evaluation mode."""
        if not self.training:
            return hardest_negatives(logits_per_image, logits_per_text, positives)
        sharpness = self.negative_sharpness
        return draw_hard_negatives(sharpness * logits_per_image, sharpness * logits_per_text, positives)

    def feature_guided_loss(self, image_student: Tensor, text_student: Tensor, guidance: R2D2FeatureGuidance) -> Tensor:
        """FgD on the cosines (B, K) of masked inputs."""
        return feature_guided_loss(
            image_student, text_student, guidance.image_targets, guidance.text_targets, guidance.temperature
        )

    def weighted_losses(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named parts, each times its weight in the configuration."""
        config = self.config
        weights = {"loss_fgr": config.fgr_weight, "loss_mlm": config.mlm_weight, "loss_fgd": config.fgd_weight}
        return {name: weights.get(name, config.gcpr_weight) * loss for name, loss in losses.items()}

    def total_loss(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the named parts, weighted as the configuration says."""
        return cast(Tensor, sum(self.weighted_losses(losses).values()))

    def _ranking_losses(
        self,
        features: R2D2PairFeatures,
        attention_mask: Tensor | None,
        mlm_labels: Tensor | None,
        negatives: HardNegatives,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """FGR and MLM of the local pairs, with the rows of other workers that were drawn."""
        text_states, image_states = features.text_states, features.image_states
        masked_states = text_states if features.masked_states is None else features.masked_states
        queries = masked_states if self.config.rank_masked_texts else text_states
        negative_text, negative_image = negatives.text_index, negatives.image_index
        if world_size() > 1:
            if attention_mask is None:
                attention_mask = torch.ones(text_states.shape[:2], dtype=torch.int64, device=text_states.device)
            (queries, text_states, attention_mask, image_states), negative_text, negative_image = fetch_drawn_states(
                queries, text_states, attention_mask, image_states, negatives
            )
        return self.rank_pairs(
            queries,
            text_states,
            image_states,
            attention_mask,
            HardNegatives(negative_image, negative_text, negatives.valid),
            masked_states,
            mlm_labels,
        )

    def rank_pairs(
        self,
        queries: Tensor,
        text_states: Tensor,
        image_states: Tensor,
        attention_mask: Tensor | None,
        negatives: HardNegatives,
        masked_states: Tensor | None = None,
        mlm_labels: Tensor | None = None,
        pair_weight: Tensor | None = None,
        masked_count: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """FGR over B true pairs, B (text, negative image) and B (negative text, image), and MLM on the true pairs'
        states of the same pass.

        Args:
            queries: (R, L, D) text states that the text-image encoder asks with, text_states: (R, L, D) that the
                image-text encoder reads, image_states: (R, N, E); R ≥ B rows, the true pairs first.
            negatives: indices (B,) into these rows.
            masked_states: (B, L, D), for MLM.
            mlm_labels: (B, L), for MLM.
            pair_weight: what the sum of the matching loss is divided by, where these B pairs are a part of the batch;
                None: their own weight, over all workers.
            masked_count: the same of MLM; None: their own count, over all workers.

        Returns:
            the losses, and the ranking accuracy.
        """
        batch = len(negatives.valid)
        own = torch.arange(batch, device=text_states.device)
        shared_pass = mlm_labels is not None and self.config.rank_masked_texts
        output = self._rank(
            queries,
            text_states,
            image_states,
            attention_mask,
            text_index=torch.cat([own, own, negatives.text_index]),
            image_index=torch.cat([own, negatives.image_index, own]),
            full_text_pairs=batch if shared_pass else 0,
            full_image_pairs=0,
        )
        labels = torch.cat([torch.ones_like(own), torch.zeros_like(own), torch.zeros_like(own)])
        present = torch.cat([torch.ones_like(negatives.valid), negatives.valid, negatives.valid]).float()
        losses = {
            "loss_fgr": ranking_loss(
                output.text_match_logits,
                output.image_match_logits,
                labels,
                match_weights(labels) * present,
                pair_weight,
            )
        }
        if mlm_labels is not None:
            full_states = output.text_cross_output.full_hidden_state
            if full_states is not None:
                states = full_states[:, : mlm_labels.shape[1]]
            else:
                assert masked_states is not None
                mask = None if attention_mask is None else attention_mask[:batch, : masked_states.shape[1]]
                states = self.text_image_encoder(masked_states, image_states[:batch], mask).last_hidden_state
            is_masked = mlm_labels != -100
            logits = self.mlm_head(states[is_masked])
            losses["loss_mlm"] = masked_language_modeling_loss(logits, mlm_labels[is_masked], masked_count)
        right = ((output.match_probability > 0.5) == labels.bool()).float() * present
        return losses, (right.sum() / present.sum()).detach()


def fetch_drawn_states(
    queries: Tensor, text_states: Tensor, attention_mask: Tensor, image_states: Tensor, negatives: HardNegatives
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor, Tensor]:
    """Beside the local rows, those of other workers that were drawn, and only those.

    Args:
        queries: (B, L, D); L may differ by worker.
        text_states: (B, L, D).
        attention_mask: (B, L).
        image_states: (B, N, E).

    Returns:
        the four with the fetched rows behind the local ones, texts as wide as the longest fetched one needs; and the
        drawn texts and images (B,) as indices into them.
    """
    length = text_states.shape[1]
    lengths = ((attention_mask != 0) * torch.arange(1, length + 1, device=attention_mask.device)).amax(dim=1)
    all_wanted = gather(torch.stack([negatives.text_index, negatives.image_index, lengths]).unsqueeze(0))
    wanted_texts, wanted_images, all_lengths = all_wanted.unbind(1)
    texts = RowExchange(negatives.text_index, wanted_texts, all_lengths, length)
    images = RowExchange(negatives.image_index, wanted_images)
    mask = attention_mask.unsqueeze(-1).to(text_states.dtype)
    same = queries is text_states  # ranking on unmasked texts: sent once
    of_texts = [text_states, mask] if same else [text_states, mask, queries]
    if missing := texts.width - length:  # padding by nothing would copy
        of_texts = [nn.functional.pad(t, (0, 0, 0, missing)) for t in of_texts]
    of_images = image_states.to(text_states.dtype)  # autocast may leave a convolutional tower in another
    (text_states, mask, *masked), (image_states,) = exchange_rows((texts, of_texts), (images, [of_images]))
    queries = masked[0] if masked else text_states
    states = (queries, text_states, mask.squeeze(-1).long(), image_states)
    return states, texts.position, images.position


__all__ = [
    "R2D2FeatureGuidance",
    "R2D2ForPreTraining",
    "R2D2ForPreTrainingOutput",
    "R2D2PairFeatures",
    "R2D2TargetGuidance",
    "R2D2TeacherTargets",
]
