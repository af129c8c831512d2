"""R2D2: two towers for pre-ranking and two cross encoders for ranking (arXiv 2205.03860, figure 2).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import (
    AltCLIPTextModel,
    BertModel,
    ChineseCLIPTextModel,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,  # diffusers looks for this name here
    SiglipTextModel,
    XLMRobertaModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .batch_norms_r2d2 import batch_norms  # noqa: F401 - diffusers copies only what this file imports
from .configuration_r2d2 import R2D2Config, R2D2TextConfig
from .cross_encoder_r2d2 import R2D2CrossEncoder, R2D2CrossEncoderOutput
from .distributed_r2d2 import world_size  # noqa: F401 - as above
from .losses_r2d2 import compare_globally, contrastive_targets, pre_ranking_loss, scaled_similarity
from .presets_r2d2 import PRESETS  # noqa: F401 - as above
from .ranges_r2d2 import require_numbers  # noqa: F401 - as above
from .two_towers_r2d2 import (
    TextTowerMixin,
    TwoTowerPreTrainedModel,
    check_padded,
    check_tokens,
    normalize,
    pooled,
    projection,
    refuse_missing,
    refuse_unequal,
    require_ranker,
    vision_tower,
)

#: The parts of a ranker.
RANKER = (
    "image_joint_projection",
    "text_image_encoder",
    "image_text_encoder",
    "text_image_match_head",
    "image_text_match_head",
)


@dataclass
class R2D2Output(ModelOutput):
    """Pre-ranking of I images and T texts.

    Args:
        loss: GCPR, with `return_loss`.
        logits_per_image: (I, T), cosine / temperature + `config.logit_bias`, float32.
        logits_per_text: (T, I), its transpose.
        text_embeds: (T, D), L2-normalised.
        image_embeds: (I, D), L2-normalised.
        text_model_output: of the towers; `vision_model_output.last_hidden_state` is always (I, N, D), `pooler_output`
            the unnormalised embedding.
        vision_model_output: as `text_model_output`.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


#: The default of a field that is always given: `ModelOutput` takes None alone.
_ALWAYS: Any = None


@dataclass
class R2D2MatchOutput(ModelOutput):
    """Ranking of P (image, text) pairs.

    Args:
        loss: with labels. match_probability (P,) float32: mean of both encoders' softmax of class 1.
        text_match_logits: of the text-image and the image-text encoder.
        image_match_logits: (P, 2), of the text-image and the image-text encoder.
        text_cross_output: their states (P, L, D) and (P, N, D), the first row only where `cls_only` was asked for.
            Where no token of the image tower stands for the whole image, the image-text encoder's first row is the mean
            of all: (P, 1 + N, D).
        image_cross_output: as `text_cross_output`.
    """

    loss: Tensor | None = None
    match_probability: Tensor = _ALWAYS
    text_match_logits: Tensor = _ALWAYS
    image_match_logits: Tensor = _ALWAYS
    text_cross_output: R2D2CrossEncoderOutput = _ALWAYS
    image_cross_output: R2D2CrossEncoderOutput = _ALWAYS

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class R2D2PreTrainedModel(TwoTowerPreTrainedModel):
    """Base of all R2D2 classes."""

    config: R2D2Config
    base_model_prefix = "r2d2"
    _no_split_modules: list[str] | None = ["R2D2CrossEncoderLayer"]
    # A fine-tuned or pre-training checkpoint loads as the plain model: the heads are left behind.
    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [r"^(mlm_head|feature_heads)\."]

    def _auto_map(self) -> dict[str, str]:
        model = "modeling_r2d2.R2D2Model"
        return {"AutoModel": model, "AutoModelForZeroShotImageClassification": model}


class R2D2TextModel(BertModel):
    """The text tower, a BERT without pooler: `input_ids` and `attention_mask` (T, L) to `last_hidden_state` (T, L, D).

    What it saves loads as a plain `BertModel`, and it loads its part of a whole R2D2 checkpoint.
    """

    config: R2D2TextConfig
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = [r"^(?!text_model\.|embeddings\.|encoder\.)"]  # the rest of the R2D2

    def __init__(self, config: R2D2TextConfig, add_pooling_layer: bool = False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)


#: The class of every text tower but BERT, by its configuration's `model_type`.
_TEXT_TOWERS: dict[str, type[PreTrainedModel]] = {
    "altclip_text_model": AltCLIPTextModel,
    "chinese_clip_text_model": ChineseCLIPTextModel,
    "clip_text_model": CLIPTextModel,
    "siglip_text_model": SiglipTextModel,
    "xlm-roberta": XLMRobertaModel,
}


def text_tower(config: PreTrainedConfig, pooler: bool = False) -> PreTrainedModel:
    """The text tower of `config`; where its own pooler can be left out, with it only if pre-ranking reads it."""
    tower = _TEXT_TOWERS.get(config.model_type, R2D2TextModel)
    if "add_pooling_layer" in inspect.signature(tower.__init__).parameters:
        return tower._from_config(config, add_pooling_layer=pooler)
    return tower._from_config(config)


class R2D2Model(TextTowerMixin, R2D2PreTrainedModel):
    """The towers, pre-ranking and, unless `config.cross_encoder_config` is None (PRD2), the ranker.

    What pre-ranking reads of a tower is `config.vision_pooling` and `config.text_pooling`; the ranker reads the towers'
    last hidden states. So a CLIP tower's `post_layernorm`, and the poolers of other towers, are there only where the
    pooling is `"pooler"`.
    """

    _auto_class = "AutoModel"
    #: `integrations.warm_start.from_vision_text_pretrained`, where the package is installed.
    from_vision_text_pretrained: ClassVar[Callable[..., Any]]

    def __init__(self, config: R2D2Config):
        super().__init__(config)
        text_size, vision_size = config.text_hidden_size, config.vision_hidden_size
        self.vision_model, self.text_model = self._towers(config)
        self._reads_token_types = "token_type_ids" in inspect.signature(type(self.text_model).forward).parameters
        self.vision_projection = projection(config.projection, vision_size, config.projection_dim)
        self.text_projection = projection(config.projection, config.pooled_text_size, config.projection_dim)
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        if config.cross_encoder_config is not None:
            cross_config = config.cross_encoder_config
            self.image_joint_projection = nn.Linear(vision_size, cross_config.hidden_size)
            self.text_image_encoder = R2D2CrossEncoder._from_config(cross_config, context_size=vision_size)
            self.image_text_encoder = R2D2CrossEncoder._from_config(cross_config, context_size=text_size)
            self.text_image_match_head = nn.Linear(cross_config.hidden_size, 2)
            self.image_text_match_head = nn.Linear(cross_config.hidden_size, 2)
        self._add_heads()
        self.post_init()

    def _towers(self, config: R2D2Config) -> tuple[PreTrainedModel, PreTrainedModel]:
        """The image and the text tower, which a subclass may have of its own kinds."""
        return (
            vision_tower(config.vision_config, config.vision_pooling == "pooler"),
            text_tower(config.text_config, config.text_pooling == "pooler"),
        )

    def _add_heads(self):
        """Where a subclass adds modules, before weights are initialised and tied."""

    @property
    def can_rank(self) -> bool:
        """Whether this model has a ranker (a PRD2 has none)."""
        return self.config.cross_encoder_config is not None

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode images (I, 3, H, W) of any size the tower takes; a ViT's position embeddings interpolate.

        Returns:
            `last_hidden_state` (I, N, D) and the unnormalised embedding (I, P) in `pooler_output`.

        Raises:
            ValueError: empty batch, or an image side that is not a multiple of a ViT's patch size.
        """
        states, outputs = self._encode_images(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.vision_projection(self._pooled(states, outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L). Where `config.attend_padding`, L is `config.max_text_length`, all tokens are read, and
        the mask is not. A tower without token types does not read those.

        Returns:
            `last_hidden_state` (T, L, D) and the unnormalised embedding (T, P) in `pooler_output`.

        Raises:
            ValueError: empty batch, more tokens than the position table holds, ids outside the vocabulary, another
                length than that of texts whose padding is read.
        """
        check_tokens(input_ids, self.config.text_config)
        if self.config.attend_padding:
            attention_mask = None
            check_padded(input_ids, self.config)
        if not self._reads_token_types:
            kwargs.pop("token_type_ids", None)  # type: ignore[typeddict-item]
        outputs = self.text_model(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        states = outputs.last_hidden_state
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.text_projection(pooled(self.config.text_pooling, states, outputs, attention_mask)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def forward(  # type: ignore[misc]  # position_ids is among TransformersKwargs too, as in the library
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2Output:
        """Pre-ranking: every image against every text; their numbers may differ.

        Of images or texts alone the output holds what their tower gives: embeddings and `vision_model_output` or
        `text_model_output`, no logits.

        Args:
            input_ids: (T, L).
            attention_mask: (T, L).
            pixel_values: (I, 3, H, W).
            return_loss: also GCPR, pair i being image i and text i.

        Raises:
            ValueError: neither images nor texts; `return_loss` without both, or with unequal numbers of them.
        """
        refuse_missing(pixel_values, input_ids, "return_loss" if return_loss else None)
        vision_outputs = text_outputs = image_embeds = text_embeds = logits_per_image = logits_per_text = loss = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
            image_embeds = normalize(vision_outputs.pooler_output)
        if input_ids is not None:
            text_outputs = self.get_text_features(
                input_ids,
                attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                return_dict=True,
                **kwargs,
            )
            text_embeds = normalize(text_outputs.pooler_output)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = scaled_similarity(image_embeds, text_embeds, self.bounded_temperature())
            if self.config.logit_bias:
                logits_per_image = logits_per_image + self.config.logit_bias
            logits_per_text = logits_per_image.t()
            if return_loss:
                refuse_unequal(image_embeds, text_embeds)
                loss = self._contrastive_loss(image_embeds, text_embeds)
        return R2D2Output(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )

    def _contrastive_loss(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        found = compare_globally(image_embeds, text_embeds, self.bounded_temperature())
        return pre_ranking_loss(found.logits_per_image, found.logits_per_text, contrastive_targets(found.positives))

    def match(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        cls_only: bool = False,
        token_type_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2MatchOutput:
        """Ranking of P aligned pairs: text i with image i.

        Args:
            input_ids: (P, L).
            attention_mask: (P, L).
            pixel_values: (P, 3, H, W).
            cls_only: skip the states of the last layer that the match heads do not read.

        Returns:
            `match_probability` (P,), as the model gives it (not calibrated), both encoders' logits (P, 2) and states.

        Raises:
            ValueError: images or texts missing, unequal numbers of them, or a model without a ranker (PRD2).
        """
        require_ranker(self.config)
        refuse_missing(pixel_values, input_ids, "ranking")
        if len(input_ids) != len(pixel_values):
            raise ValueError(f"match pairs image i with text i: {len(pixel_values)} images, {len(input_ids)} texts")
        texts = self.get_text_features(input_ids, attention_mask, token_type_ids=token_type_ids, return_dict=True)
        images = self.get_image_features(pixel_values, return_dict=True)
        return self.rank(texts.last_hidden_state, images.last_hidden_state, attention_mask, cls_only=cls_only, **kwargs)

    def rank(
        self,
        text_hidden_states: Tensor,
        image_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        text_index: Tensor | None = None,
        image_index: Tensor | None = None,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2MatchOutput:
        """Ranking on states already encoded.

        Args:
            text_hidden_states: (T, L, D) of the text tower.
            attention_mask: (T, L).
            image_hidden_states: (I, N, E) of the image tower.
            text_index: (P,) int64, the text of each pair; None = in order. Work that does not depend on the pairing is
                done once per text or image.
            image_index: (P,) int64, its image.
            cls_only: skip the states of the last layer that the match heads do not read.

        Raises:
            ValueError: a model without a ranker (PRD2).
        """
        require_ranker(self.config)
        return self._rank(
            text_hidden_states,
            text_hidden_states,
            image_hidden_states,
            attention_mask,
            text_index,
            image_index,
            full_text_pairs=0 if cls_only else None,
            full_image_pairs=0 if cls_only else None,
            **kwargs,
        )

    def _rank(
        self,
        text_queries: Tensor,
        text_context: Tensor,
        image_hidden_states: Tensor,
        attention_mask: Tensor | None,
        text_index: Tensor | None,
        image_index: Tensor | None,
        full_text_pairs: int | None,
        full_image_pairs: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2MatchOutput:
        """`rank` where the text-image encoder asks with other text states (masked ones: enhanced training) than
        the image-text encoder reads."""
        if self.config.attend_padding:
            attention_mask = None
        text_cross = self.text_image_encoder(
            text_queries,
            image_hidden_states,
            attention_mask=attention_mask,
            query_index=text_index,
            context_index=image_index,
            full_pairs=full_text_pairs,
            **kwargs,
        )
        image_queries = self.image_joint_projection(image_hidden_states)
        if not self.config.has_class_token:  # the mean of its tokens stands in for it
            image_queries = torch.cat([image_queries.mean(dim=1, keepdim=True), image_queries], dim=1)
        image_cross = self.image_text_encoder(
            image_queries,
            text_context,
            encoder_attention_mask=attention_mask,
            query_index=image_index,
            context_index=text_index,
            full_pairs=full_image_pairs,
            **kwargs,
        )
        text_logits = self.text_image_match_head(text_cross.last_hidden_state[:, 0])
        image_logits = self.image_text_match_head(image_cross.last_hidden_state[:, 0])
        return R2D2MatchOutput(
            match_probability=match_probability(text_logits, image_logits),
            text_match_logits=text_logits,
            image_match_logits=image_logits,
            text_cross_output=text_cross,
            image_cross_output=image_cross,
        )


class R2D2ForImageTextMatching(R2D2Model):
    """Fine-tuning on labelled pairs (ICM, IQM): the loss is the mean of both encoders' cross-entropy on logits.

    The authors' code applies cross-entropy to the averaged *probabilities*, a softmax of a softmax; this does not.
    """

    _auto_class = "AutoModelForImageTextMatching"  # so that a saved folder's AutoModel stays R2D2Model

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        smoothing: float = 0.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> R2D2MatchOutput:
        """Rank P aligned pairs: text i with picture i.

        Args:
            input_ids: (P, L).
            attention_mask: (P, L).
            pixel_values: (P, 3, H, W).
            labels: (P,) int64, 1 = match, 0 = no match; with them the output has a `loss`.
            smoothing: of the labels, for the loss.

        Raises:
            ValueError: as `R2D2Model.match`.
        """
        input_ids, pixel_values = cast(Tensor, input_ids), cast(Tensor, pixel_values)  # `match` refuses None
        output = self.match(input_ids, pixel_values, attention_mask, token_type_ids=token_type_ids, **kwargs)
        if labels is not None:
            both = torch.cat([output.text_match_logits, output.image_match_logits]).float()
            output.loss = nn.functional.cross_entropy(both, labels.repeat(2), label_smoothing=smoothing)
        return output


def match_probability(text_match_logits: Tensor, image_match_logits: Tensor) -> Tensor:
    """Mean over both encoders of softmax(logits)[class 1]: (P, 2), (P, 2) -> (P,) float32."""
    logits = torch.stack([text_match_logits, image_match_logits]).float()
    return logits.softmax(dim=-1)[..., 1].mean(dim=0)


def match_log_odds(text_match_logits: Tensor, image_match_logits: Tensor) -> Tensor:
    """log p − log(1 − p) of the match probability p = ½ (σ(d₁) + σ(d₂)), each d the two logits' difference:

        log (σ(d₁) + σ(d₂)) − log (σ(−d₁) + σ(−d₂))

    By logarithms throughout, so that it goes on growing with d where p rounds to 0 or 1.

    Args:
        text_match_logits: (…, 2) of the text-image encoder.
        image_match_logits: (…, 2) of the image-text encoder.

    Returns:
        (…) float32.
    """
    both = torch.stack([text_match_logits, image_match_logits]).float()
    odds = both[..., 1] - both[..., 0]
    yes, no = nn.functional.logsigmoid(odds), nn.functional.logsigmoid(-odds)
    return torch.logaddexp(yes[0], yes[1]) - torch.logaddexp(no[0], no[1])


__all__ = [
    "RANKER",
    "R2D2CrossEncoder",
    "R2D2ForImageTextMatching",
    "R2D2MatchOutput",
    "R2D2Model",
    "R2D2Output",
    "R2D2PreTrainedModel",
    "R2D2TextModel",
]
