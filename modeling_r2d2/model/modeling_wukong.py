"""Wukong (arXiv 2202.06767): two towers, compared as a whole (CLIP) or token by token (FILIP, Wukong).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_wukong import WukongConfig
from .distributed_r2d2 import gather, process_index
from .losses_r2d2 import compare_globally, contrastive_targets, pre_ranking_loss, same_identity, scaled_similarity
from .prompts_r2d2 import class_means
from .token_similarity_r2d2 import (
    TokenWiseSimilarity,
    gathered_token_wise_similarity,
    token_wise_contrastive_loss,
    token_wise_similarity,
)
from .two_towers_r2d2 import (
    POOLED_NORM,
    TextTowerMixin,
    TwoTowerPreTrainedModel,
    check_tokens,
    normalize,
    refuse_missing,
    refuse_unequal,
    vision_tower,
)


@dataclass
class WukongOutput(ModelOutput):
    """I images against T texts.

    Args:
        loss: with `return_loss`.
        logits_per_image: (I, T), similarity / temperature, float32; with token-wise similarity the second is not the
            transpose of the first.
        logits_per_text: (T, I), as `logits_per_image`.
        text_embeds: of unit length, (T, P) and (I, P), or (T, L, P) and (I, N, P) token by token.
        image_embeds: as `text_embeds`.
        text_mask: (T, L), the real tokens.
        text_model_output: of `get_text_features` and `get_image_features`.
        vision_model_output: of `get_text_features` and `get_image_features`.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    text_mask: Tensor | None = None

    def to_tuple(self) -> tuple:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in self.values())


class WukongClassEmbeds(NamedTuple):
    """C classes described by K prompts each: embeds (C, P) for global similarity, (C, K, L, P) and the mask (C, K, L)
    of the real tokens for token-wise."""

    embeds: Tensor
    mask: Tensor | None = None


class WukongTokenReduction(nn.Module):
    """N weighted sums of the projected image tokens (Wukong, arXiv 2202.06767; as in the published code).

    The weights are softmaxes over the positions of N maps: LayerNorm, a grouped 1×1 convolution, a 1×1 convolution.
    What is summed passes a grouped 1×1 convolution of its own, without the LayerNorm. No biases.
    """

    def __init__(self, width: int, tokens: int, groups: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention_maps = nn.Sequential(
            nn.Conv2d(width, width, 1, groups=groups, bias=False), nn.Conv2d(width, tokens, 1, bias=False)
        )
        self.feat_conv = nn.Conv2d(width, width, 1, groups=groups, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """(B, positions, P) -> (B, N, P)."""
        maps = self.attention_maps(self.norm(states).transpose(1, 2).unsqueeze(3)).squeeze(3)  # (B, N, positions)
        values = self.feat_conv(states.transpose(1, 2).unsqueeze(3)).squeeze(3)  # (B, P, positions)
        weights = maps.float().softmax(dim=2).to(values.dtype)
        return weights @ values.transpose(1, 2)


class WukongPreTrainedModel(TwoTowerPreTrainedModel):
    """Base of all Wukong classes."""

    config: WukongConfig
    base_model_prefix = "wukong"
    _no_split_modules = []

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, WukongModel):
            for projection in (module.vision_projection, module.text_projection):
                init.normal_(projection.weight, std=projection.in_features**-0.5)
        elif isinstance(module, WukongTokenReduction):
            for convolution in (*module.attention_maps, module.feat_conv):
                init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")

    def _auto_map(self) -> dict[str, str]:
        model = "modeling_wukong.WukongModel"
        return {"AutoModel": model, "AutoModelForZeroShotImageClassification": model}


class WukongModel(TextTowerMixin, WukongPreTrainedModel):
    """The towers and their similarity.

    Texts are right-padded, and the causal text tower never sees padding. A text without a real token has the zero
    embedding, so its similarity with every image is 0.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: WukongConfig):
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_model = vision_tower(vision)
        # towers that leave their last norm to the pooled output: here every token that is compared passes it
        self.vision_layernorm = (
            nn.LayerNorm(config.vision_hidden_size, eps=vision.layer_norm_eps)
            if vision.model_type in POOLED_NORM
            else nn.Identity()
        )
        self.text_model = CLIPTextModel._from_config(text)
        self.vision_projection = nn.Linear(
            config.vision_hidden_size, config.projection_dim, bias=bool(config.vision_projection_bias)
        )
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.token_reduction = (
            None
            if config.token_reduction is None
            else WukongTokenReduction(config.projection_dim, config.token_reduction, config.token_reduction_groups)
        )
        self.temperature = nn.Parameter(torch.tensor(float(config.temperature_init_value)))
        self.post_init()
        self.lock_image_tower(config.lock_image_tower)

    @property
    def is_token_wise(self) -> bool:
        """Whether images and texts are compared token by token."""
        return self.config.similarity == "token-wise"

    @property
    def can_rank(self) -> bool:
        """False: there is no cross encoder."""
        return False

    def lock_image_tower(self, locked: bool = True) -> "WukongModel":
        """Locked-image tuning (LiT): the image tower and its last norm get no gradient and stay in evaluation mode;
        text tower, projections and token reduction train. The configuration remembers it."""
        self.config.lock_image_tower = locked
        for module in (self.vision_model, self.vision_layernorm):
            module.requires_grad_(not locked)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "WukongModel":
        """As in torch, but a locked image tower stays frozen and in evaluation mode."""
        super().train(mode)
        if self.config.lock_image_tower:
            for module in (self.vision_model, self.vision_layernorm):
                module.eval().requires_grad_(False)  # again: from_pretrained replaces parameters, then calls eval()
        return self

    @can_return_tuple
    def get_image_features(
        self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode images (I, 3, H, W).

        Returns:
            `last_hidden_state` (I, M, D) of the tower, before its last norm where that is its pooler's, and in
            `pooler_output` the unnormalised embedding: (I, P), or token by token (I, N, P), of all patches or of the
            N tokens that the reduction leaves; never of [CLS].

        Raises:
            ValueError: empty batch, or an image side that is not a multiple of a ViT's patch size.
        """
        states, outputs = self._encode_images(pixel_values, **kwargs)
        if self.is_token_wise:
            compared = states[:, self.config.vision_prefix_tokens :]
        else:
            compared = self._pooled(states, outputs)
        embeds = self.vision_projection(self.vision_layernorm(compared))
        if self.token_reduction is not None:
            embeds = self.token_reduction(embeds)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L), padded on the right. Without a mask, padding is where the pad token stands.

        Returns:
            `last_hidden_state` (T, L, D) and in `pooler_output` the unnormalised embedding: (T, P) at the last real
            token, or token by token (T, L, P); zero on padding.

        Raises:
            ValueError: empty batch, more tokens than positions, ids outside the vocabulary, padding on the left.
        """
        check_tokens(input_ids, self.config.text_config)
        mask = self.text_mask(input_ids, attention_mask)
        # attention is causal and padding on the right: no real token sees it, and a mask would change nothing
        outputs = self.text_model(input_ids, return_dict=True, **kwargs)
        states = outputs.last_hidden_state
        if self.is_token_wise:
            embeds = self.text_projection(states) * mask[:, :, None]
        else:
            lengths = mask.sum(dim=1)
            last = states[torch.arange(len(states), device=states.device), (lengths - 1).clamp_min(0)]
            embeds = self.text_projection(last) * (lengths > 0)[:, None]
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def text_mask(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(T, L) boolean, true on real tokens.

        Raises:
            ValueError: padding before a real token (looked at on the CPU alone), no mask and no pad token.
        """
        if attention_mask is None:
            if (pad_token_id := self.config.text_config.pad_token_id) is None:
                raise ValueError("text_config.pad_token_id is None, so padding shows in an attention_mask alone")
            return input_ids.ne(pad_token_id)
        mask = attention_mask.bool()
        if not torch.compiler.is_compiling() and mask.device.type == "cpu" and (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "attention_mask has padding before a real token, and a causal text tower would see it: pad on the "
                "right (tokenizer.padding_side = 'right')"
            )
        return mask

    @can_return_tuple
    def forward(  # type: ignore[misc]  # position_ids is among TransformersKwargs too, as in the library
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        image_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> WukongOutput:
        """Every image against every text; their numbers may differ.

        Of images or texts alone the output holds what their tower gives: embeddings and `vision_model_output`, or
        `text_model_output` and `text_mask`; no logits.

        Args:
            input_ids: (T, L).
            attention_mask: (T, L).
            pixel_values: (I, 3, H, W).
            return_loss: also the contrastive loss over all workers, pair i being image i and text i.
            image_ids: (I,) int64, for the loss: all captions of one picture are its positives. None: every pair is
                its own picture.
            token_type_ids: what a BERT tokenizer makes; this text tower has none, so it is not read.

        Raises:
            ValueError: neither images nor texts; `return_loss` without both, or with unequal numbers of them.
        """
        refuse_missing(pixel_values, input_ids, "return_loss" if return_loss else None)
        vision_outputs = text_outputs = image_embeds = text_embeds = mask = None
        logits_per_image = logits_per_text = loss = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
            image_embeds = normalize(vision_outputs.pooler_output)
        if input_ids is not None:
            text_outputs = self.get_text_features(
                input_ids, attention_mask, position_ids=position_ids, return_dict=True, **kwargs
            )
            text_embeds = normalize(text_outputs.pooler_output)
            mask = self.text_mask(input_ids, attention_mask)
        if image_embeds is not None and text_embeds is not None and mask is not None:
            if return_loss:
                refuse_unequal(image_embeds, text_embeds)
                loss, logits_per_image, logits_per_text = self._contrastive_loss(
                    image_embeds, text_embeds, mask, image_ids
                )
            else:
                logits_per_image, logits_per_text = self.compare(image_embeds, text_embeds, mask)
        return WukongOutput(
            loss=loss,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
            text_mask=mask,
        )

    def compare(self, image_embeds: Tensor, text_embeds: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of embeddings already made, as `forward` returns them.

        Args:
            image_embeds: of unit length, (I, P), or (I, N, P) token by token.
            text_embeds: of unit length, (T, P), or (T, L, P) token by token.
            text_mask: (T, L), read by token-wise similarity only.

        Returns:
            logits_per_image (I, T) and logits_per_text (T, I), float32.
        """
        temperature = self.bounded_temperature()
        if not self.is_token_wise:
            logits = scaled_similarity(image_embeds, text_embeds, temperature)
            return logits, logits.t()
        per_image, per_text = self.similarities(image_embeds, text_embeds, text_mask).both
        return per_image / temperature, per_text / temperature

    def similarities(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        text_mask: Tensor,
        *,
        image_to_text: bool = True,
        text_to_image: bool = True,
    ) -> TokenWiseSimilarity:
        """As `compare`, without the temperature: s(I → T) as (I, T) and s(T → I) as (T, I), float32. Token-wise either
        may be left out, and is None then."""
        if not self.is_token_wise:
            cosine = scaled_similarity(image_embeds, text_embeds, torch.ones((), device=image_embeds.device))
            return TokenWiseSimilarity(cosine, cosine.t())
        return token_wise_similarity(
            image_embeds,
            text_embeds,
            text_mask,
            image_to_text=image_to_text,
            text_to_image=text_to_image,
            **self._similarity_settings(text_mask),
        )

    def _similarity_settings(self, text_mask: Tensor) -> dict[str, Any]:
        settings: dict[str, Any] = {"chunk_size": self.config.similarity_chunk_size}
        if self.config.text_padding == "zero":
            settings["zero_padded"] = text_mask.sum(dim=1) < self.config.text_config.max_position_embeddings
        return settings

    def _contrastive_loss(
        self, image_embeds: Tensor, text_embeds: Tensor, text_mask: Tensor, image_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and the logits of this worker's images and texts, which are part of it."""
        batch, temperature = len(image_embeds), self.bounded_temperature()
        own = slice(process_index() * batch, (process_index() + 1) * batch)
        if self.is_token_wise:
            ids = torch.arange(own.start, own.stop, device=image_embeds.device) if image_ids is None else image_ids
            similarity = gathered_token_wise_similarity(
                image_embeds, text_embeds, text_mask, **self._similarity_settings(text_mask)
            )
            targets = contrastive_targets(same_identity(ids, gather(ids)))
            loss = token_wise_contrastive_loss(similarity, temperature, targets)
            per_image, per_text = (each / temperature for each in similarity.both)
        else:
            per_image, per_text, positives = compare_globally(image_embeds, text_embeds, temperature, image_ids)
            loss = pre_ranking_loss(per_image, per_text, contrastive_targets(positives))
        return loss, per_image[:, own], per_text[:, own]

    def encode_classes(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompts: int = 1
    ) -> WukongClassEmbeds:
        """Embed C classes by K prompts each, once for any number of images.

        Args:
            input_ids: (C·K, L), the K prompts of a class next to each other, as `class_prompts` orders them.
            attention_mask: (C·K, L).
            prompts: K.

        Returns:
            With global similarity the mean of the K unit vectors, brought to unit length: (C, P). Token-wise, all of
            them: (C, K, L, P).

        Raises:
            ValueError: a number of texts that K does not divide.
        """
        if prompts < 1 or len(input_ids) % prompts:
            raise ValueError(f"{len(input_ids)} texts are not {prompts} prompts for each class")
        mask = self.text_mask(input_ids, attention_mask)
        embeds = normalize(self.get_text_features(input_ids, mask, return_dict=True).pooler_output)
        if self.is_token_wise:
            return WukongClassEmbeds(embeds.unflatten(0, (-1, prompts)), mask.unflatten(0, (-1, prompts)))
        classes = len(embeds) // prompts
        return WukongClassEmbeds(class_means(embeds, torch.arange(classes).repeat_interleave(prompts), classes))

    def class_probabilities(
        self, pixel_values: Tensor, classes: WukongClassEmbeds, temperature: float | Tensor | None = None
    ) -> Tensor:
        """Zero-shot classification: I images by the classes of `encode_classes`.

        With global similarity softmax over the classes of s(I → class)/τ; token-wise the mean over the prompts of
        softmax over the classes of s(I → prompt)/τ.

        Args:
            pixel_values: (I, 3, H, W).
            temperature: τ; None = the learned one. (The authors' evaluation code takes the softmax of the bare
                similarity, τ = 1, which matters to the mean over prompts alone.)

        Returns:
            (I, C) float32; every row sums to 1.

        Raises:
            ValueError: classes that a model of global similarity encoded, where this one compares token by token.
        """
        temperature = torch.as_tensor(
            self.bounded_temperature() if temperature is None else temperature, device=pixel_values.device
        )
        image_embeds = normalize(self.get_image_features(pixel_values, return_dict=True).pooler_output)
        if not self.is_token_wise:
            return scaled_similarity(image_embeds, classes.embeds, temperature).softmax(dim=1)
        count, prompts = classes.embeds.shape[:2]
        if classes.mask is None:
            raise ValueError("these classes were encoded by a model of global similarity, and this one is token-wise")
        mask = classes.mask.flatten(0, 1)
        similarity = token_wise_similarity(
            image_embeds,
            classes.embeds.flatten(0, 1),
            mask,
            text_to_image=False,
            **self._similarity_settings(mask),
        ).per_image
        assert similarity is not None
        return (similarity.unflatten(1, (count, prompts)) / temperature).softmax(dim=1).mean(dim=2)


__all__ = [
    "WukongClassEmbeds",
    "WukongModel",
    "WukongOutput",
    "WukongPreTrainedModel",
    "WukongTokenReduction",
]
