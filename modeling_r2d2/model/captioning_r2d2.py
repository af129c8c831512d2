"""Captioning, an extension of this project: the paper names the task, but no method or figure was published for it.

The text tower and the text-image cross encoder are read causally and continued by the MLM head, so that an R2D2
pre-trained with masked language modelling needs no new weights to become a captioner. It still has to be fine-tuned:
the MLM head predicts a masked token in its own place, a captioner the next one. This file travels to the Hub beside
the weights, so it imports only torch, transformers and flat siblings.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_r2d2 import R2D2Config, R2D2CrossEncoderConfig
from .cross_encoder_r2d2 import R2D2Attention, R2D2CrossEncoder, R2D2CrossEncoderLayer, eager_attention_forward
from .losses_r2d2 import masked_language_modeling_loss
from .modeling_r2d2 import R2D2PreTrainedModel, R2D2TextModel
from .pretraining_r2d2 import R2D2MLMHead
from .two_towers_r2d2 import TextTowerMixin, check_tokens, require_ranker, vision_tower

IGNORED_LABEL = -100


class R2D2CachedAttention(R2D2Attention):
    """`R2D2Attention` (the same weights) that keeps keys and values (B, H, L, d) between the steps of `generate`."""

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a context (B, N, E): (B, H, N, d) each."""
        heads = (-1, self.head_dim)
        key, value = (p(context).unflatten(-1, heads).transpose(1, 2) for p in (self.k_proj, self.v_proj))
        return key, value

    def forward(  # type: ignore[override]  # the same weights on keys and values made before
        self,
        hidden_states: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Queries (B, L, D) attend to keys and values (B, H, N, d)."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2),
            key,
            value,
            attention_mask,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), weights


class R2D2CaptionDecoderLayer(R2D2CrossEncoderLayer):
    """A layer of the text-image encoder (the same weights) whose self-attention looks back only.

    `cache_index` is its place among all layers of the self-attention cache, `layer_index` that of the cross-attention.
    """

    self_attn: R2D2CachedAttention
    cross_attn: R2D2CachedAttention

    def __init__(self, config: R2D2CrossEncoderConfig, context_size: int, layer_index: int, cache_index: int):
        super().__init__(config, context_size)
        self.self_attn = R2D2CachedAttention(config)
        self.cross_attn = R2D2CachedAttention(config, context_size)
        self.layer_index, self.cache_index = layer_index, cache_index

    def forward(  # type: ignore[override]  # the same weights on one text a picture, and a cache
        self,
        hidden_states: Tensor,
        context: Tensor | None,
        attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """(B, L, D) -> (B, L, D); context (B, N, E), or None where the cache holds its keys and values."""
        key, value = self.self_attn.keys_values(hidden_states)
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.cache_index)
        attended, _ = self.self_attn(hidden_states, key, value, attention_mask, is_causal=True, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        attended, _ = self.cross_attn(hidden_states, *self._context(context, past_key_values), **kwargs)
        hidden_states = self.cross_attn_layer_norm(hidden_states + self.dropout(attended))
        transformed = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + self.dropout(transformed))

    def _context(self, context: Tensor | None, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        if cache is not None and cache.is_updated.get(self.layer_index):
            held: Any = cache.cross_attention_cache.layers[self.layer_index]
            return held.keys, held.values
        assert context is not None  # `_check_inputs` has seen to it
        key, value = self.cross_attn.keys_values(context)
        if cache is None:
            return key, value
        cache.is_updated[self.layer_index] = True
        return cache.cross_attention_cache.update(key, value, self.layer_index)


class R2D2CaptionDecoder(R2D2CrossEncoder):
    """The text-image encoder as a decoder; weights as `R2D2CrossEncoder`.

    `layers_before`: how many layers of the text tower come before it in the self-attention cache.
    """

    _no_split_modules = ["R2D2CaptionDecoderLayer"]
    _can_record_outputs = {
        "hidden_states": R2D2CaptionDecoderLayer,
        "attentions": OutputRecorder(R2D2CachedAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(R2D2CachedAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: R2D2CrossEncoderConfig, context_size: int, layers_before: int = 0):
        super(R2D2CrossEncoder, self).__init__(config)  # the layers of R2D2CrossEncoder would be made in vain
        self.layers = nn.ModuleList(
            R2D2CaptionDecoderLayer(config, context_size, index, layers_before + index)
            for index in range(config.num_hidden_layers)
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """(B, L, D) states of the text tower and (B, N, E) of the image tower -> (B, L, D). `attention_mask` as
        `create_causal_mask` makes it."""
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, encoder_hidden_states, attention_mask, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states, past_key_values=past_key_values
        )


class R2D2ForConditionalGeneration(TextTowerMixin, R2D2PreTrainedModel, GenerationMixin):
    """Captions of pictures, by `generate()`: sampling, beams, a key/value cache.

    image tower → (B, N, E); [CLS] and the caption so far → text tower, causal → text-image encoder, causal →
    MLM head → next token; [SEP] ends a caption. Loads from any R2D2 checkpoint with a ranker; what it does not read
    (pre-ranking, the image-text encoder, the match heads) is left behind. The MLM head of a pre-training checkpoint
    is taken over; one that a checkpoint lacks is initialised anew, and transformers says so.

    The ids of [CLS], [SEP] and [PAD] are in `generation_config`; `set_special_tokens` reads them from a tokenizer.

    Example:
        model = R2D2ForConditionalGeneration.from_pretrained("runs/captioner")
        processor = AutoProcessor.from_pretrained("runs/captioner")
        tokens = model.generate(**processor(images=[picture], return_tensors="pt"), num_beams=3)
        processor.post_process_image_text_to_text(tokens)  # ["一只小狗在草地上"]

    Raises:
        ValueError: a configuration without a ranker (PRD2).
    """

    text_model: R2D2TextModel
    _auto_class = "AutoModelForImageTextToText"
    _no_split_modules = ["R2D2CaptionDecoderLayer"]
    _tied_weights_keys = {"mlm_head.decoder.weight": "text_model.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [
        r"^(vision_projection|text_projection|image_joint_projection|image_text_encoder)\.",
        r"^(text_image_match_head|image_text_match_head|feature_heads)\.",
        r"^temperature$",
    ]

    def __init__(self, config: R2D2Config):
        super().__init__(config)
        require_ranker(config, "writing captions")
        if config.text_config.model_type != "bert":
            raise ValueError(
                f"captions are written by a BERT's layers, token after token, and this text tower is a "
                f"{config.text_config.model_type!r}"
            )
        self.vision_model = vision_tower(config.vision_config, config.vision_pooling == "pooler")
        self.text_model = R2D2TextModel._from_config(config.text_config)
        self.text_image_encoder = R2D2CaptionDecoder._from_config(
            config.cross_encoder_config,
            context_size=config.vision_hidden_size,
            layers_before=config.text_config.num_hidden_layers,
        )
        self.mlm_head = R2D2MLMHead(config)
        self.generation_config = GenerationConfig(max_new_tokens=config.max_text_length - 1)
        self.post_init()

    def _auto_map(self) -> dict[str, str]:
        return {}  # its weights are no whole R2D2Model

    def get_output_embeddings(self) -> nn.Module:
        """The vocabulary projection."""
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        """Replace the vocabulary projection."""
        self.mlm_head.decoder = new_embeddings

    def set_special_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the ids that begin ([CLS]), end ([SEP]) and pad a caption from a BERT tokenizer."""
        self.generation_config.bos_token_id = tokenizer.cls_token_id
        self.generation_config.eos_token_id = tokenizer.sep_token_id
        self.generation_config.pad_token_id = tokenizer.pad_token_id

    def get_image_states(self, pixel_values: Tensor) -> Tensor:
        """What the decoder reads: images (B, 3, H, W) -> last hidden states (B, N, E) of the image tower."""
        return self._encode_images(pixel_values)[0]

    @can_return_tuple
    def forward(  # type: ignore[misc]  # position_ids is among TransformersKwargs too, as in the library
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        smoothing: float = 0.0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Next-token prediction on captions of B pictures.

        Args:
            input_ids: (B, L) from [CLS] on.
            attention_mask: (B, P + L), padding on either side, P tokens in the cache.
            pixel_values: (B, 3, H, W), or `image_hidden_states` (B, N, E) of `get_image_states`; neither where the
                cache holds the pictures' keys and values.
            labels: (B, L), as `input_ids`, -100 where nothing is to be learnt; position i is judged by label i + 1.
                The loss is the mean over these tokens of all workers, and only their logits are computed: `logits`
                is then None.
            logits_to_keep: logits of the last so many positions only; 0: of all.
            smoothing: of the labels, for the loss.

        Returns:
            `loss`, `logits` (B, L, V), `past_key_values`; of the decoder, where asked for, `hidden_states`,
            `attentions` and `cross_attentions`.

        Raises:
            ValueError: no caption, no picture, unequal numbers of them, or more tokens than positions.
        """
        if input_ids is None:
            raise ValueError("forward reads captions (input_ids); generate(pixel_values=…) writes them")
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if image_hidden_states is None and pixel_values is not None:
            image_hidden_states = self.get_image_states(pixel_values)
        self._check_inputs(input_ids, image_hidden_states, past_key_values, seen)
        if position_ids is None and attention_mask is not None:  # padding on the left counts for nothing
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)[:, -input_ids.shape[1] :]
        states = self.text_model.embeddings(
            input_ids, token_type_ids=token_type_ids, position_ids=position_ids, past_key_values_length=seen
        )
        # both masks before the first layer grows the cache
        text_mask, cross_mask = (
            create_causal_mask(
                config=config, inputs_embeds=states, attention_mask=attention_mask, past_key_values=past_key_values
            )
            for config in (self.text_model.config, self.text_image_encoder.config)
        )
        for layer in self.text_model.encoder.layer:
            states = layer(states, text_mask, None, past_key_values=past_key_values, is_causal=True)
        decoded = self.text_image_encoder(states, image_hidden_states, cross_mask, past_key_values, **kwargs)
        states, loss, logits = decoded.last_hidden_state, None, None
        if labels is not None:
            targets = labels[:, 1:]
            judged = targets != IGNORED_LABEL
            logits_judged = self.mlm_head(states[:, :-1][judged])
            loss = masked_language_modeling_loss(logits_judged, targets[judged], smoothing=smoothing)
        else:
            logits = self.mlm_head(states[:, -logits_to_keep:])
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
        )

    def _check_inputs(self, input_ids: Tensor, image_states: Tensor | None, cache: Cache | None, seen: int):
        if torch.compiler.is_compiling():
            return
        check_tokens(input_ids, self.config.text_config)
        positions = self.config.text_config.max_position_embeddings
        if seen + input_ids.shape[1] > positions:
            raise ValueError(
                f"a caption of {seen + input_ids.shape[1]} tokens exceeds the {positions} positions of the text tower"
            )
        if image_states is None and not (isinstance(cache, EncoderDecoderCache) and cache.is_updated):
            raise ValueError("give the pictures: pixel_values, or image_hidden_states of get_image_states")
        if image_states is not None and len(image_states) != len(input_ids):
            raise ValueError(f"caption i describes image i: {len(image_states)} images, {len(input_ids)} captions")

    @torch.no_grad()
    def generate(  # type: ignore[override]  # it begins with images
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs,
    ):
        """Captions of B pictures; further arguments as in transformers (`num_beams`, `do_sample`, …).

        Every picture is encoded once, and its keys and values are projected once, however many beams there are.

        Args:
            pixel_values: (B, 3, H, W), or `image_hidden_states` (B, N, E).
            input_ids: (B, P) how each caption begins, as the processor encodes it: the closing [SEP] is taken off and
                short beginnings are padded on the left. None: [CLS] alone.
            attention_mask: (B, P).

        Returns:
            (B, P + new) tokens, [CLS] and the beginnings included, as any generation model without an encoder of
            texts; or what `return_dict_in_generate` asks for. `max_new_tokens` is at most what the positions of the
            text tower leave.

        Raises:
            ValueError: no picture, or the special tokens are unknown.
        """
        config = deepcopy(kwargs.pop("generation_config", None) or self.generation_config)
        length, new_tokens = kwargs.pop("max_length", None), kwargs.pop("max_new_tokens", None)
        kwargs = config.update(**kwargs)  # what is left is for forward
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # another configuration may lack them
            if getattr(config, name) is None:
                setattr(config, name, getattr(self.generation_config, name))
            if getattr(config, name) is None:
                raise ValueError(
                    f"generation_config.{name} is not set: model.set_special_tokens(processor.tokenizer) reads the "
                    "special tokens from a tokenizer"
                )
        if image_hidden_states is None:
            if pixel_values is None:
                raise ValueError("generate needs pixel_values (or image_hidden_states): it captions pictures")
            image_hidden_states = self.get_image_states(pixel_values)
        count = len(image_hidden_states)
        if input_ids is None:
            input_ids = torch.full((count, 1), config.bos_token_id, device=image_hidden_states.device)
            attention_mask = torch.ones_like(input_ids)
        else:
            if len(input_ids) != count:
                raise ValueError(f"caption i describes image i: {count} images, {len(input_ids)} beginnings")
            input_ids, attention_mask = _beginnings(input_ids, attention_mask, config)
        rest = self.config.text_config.max_position_embeddings - input_ids.shape[1]
        if rest < 1:
            raise ValueError(f"a beginning of {input_ids.shape[1]} tokens leaves no position for a caption")
        wanted = new_tokens or (length and length - input_ids.shape[1]) or config.max_new_tokens or rest
        config.max_new_tokens, config.max_length = min(wanted, rest), None
        if config.use_cache is not False and "past_key_values" not in kwargs:
            copies = max(config.num_beams or 1, config.num_return_sequences or 1)
            kwargs["past_key_values"] = self._image_cache(image_hidden_states, copies)
        else:
            kwargs["image_hidden_states"] = image_hidden_states
        return cast(Any, super()).generate(input_ids, generation_config=config, attention_mask=attention_mask, **kwargs)

    def _image_cache(self, image_states: Tensor, copies: int) -> EncoderDecoderCache:
        """A cache that holds every picture's keys and values, projected once and repeated for its beams."""
        cross = DynamicCache()
        for index, layer in enumerate(self.text_image_encoder.layers):
            keys_values = layer.cross_attn.keys_values(image_states)
            cross.update(*(t.repeat_interleave(copies, dim=0) if copies > 1 else t for t in keys_values), index)
        return EncoderDecoderCache(DynamicCache(), cross)


def _beginnings(input_ids: Tensor, attention_mask: Tensor | None, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """Encoded texts (B, L), padded on either side, without their closing [SEP] and padded on the left: (B, P)."""
    if attention_mask is None:
        attention_mask = (input_ids != config.pad_token_id).long()
    place = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (attention_mask * place).argmax(dim=1)
    closing = (place == last[:, None]) & (input_ids == config.eos_token_id)
    kept = attention_mask.bool() & ~closing
    order = kept.int().argsort(dim=1, stable=True)  # what is dropped goes to the left, the rest keeps its order
    longest = int(kept.sum(dim=1).max())
    input_ids = input_ids.masked_fill(~kept, config.pad_token_id).gather(1, order)[:, -longest:]
    return input_ids, kept.gather(1, order)[:, -longest:].long()


__all__ = ["R2D2CaptionDecoder", "R2D2ForConditionalGeneration"]
