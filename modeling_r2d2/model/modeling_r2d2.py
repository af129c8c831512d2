"""R2D2: two towers for pre-ranking and two cross encoders for ranking (arXiv 2205.03860, figure 2).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import contextlib
import inspect
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, BertModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .batch_norms_r2d2 import batch_norms
from .configuration_r2d2 import R2D2Config, R2D2TextConfig
from .cross_encoder_r2d2 import R2D2CrossEncoder, R2D2CrossEncoderOutput
from .distributed_r2d2 import gather, process_index, world_size
from .losses_r2d2 import contrastive_targets, pre_ranking_loss, same_identity, scaled_similarity
from .presets_r2d2 import PRESETS  # noqa: F401 - diffusers copies only what this file imports
from .ranges_r2d2 import require_numbers  # noqa: F401 - as above


@dataclass
class R2D2Output(ModelOutput):
    """Pre-ranking of I images and T texts.

    Args:
        loss: GCPR, with `return_loss`.
        logits_per_image: (I, T), cosine / temperature, float32.
        logits_per_text: (T, I), cosine / temperature, float32.
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
            Where pre-ranking reads the mean of the tower's tokens, the image-text encoder's first row is that mean: (P,
            1 + N, D).
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


class R2D2PreTrainedModel(PreTrainedModel):
    """Base of all R2D2 classes: weight initialisation, attention switches and what is saved for remote code."""

    config: R2D2Config
    temperature: nn.Parameter
    vision_model: PreTrainedModel
    base_model_prefix = "r2d2"
    input_modalities = ["image", "text"]
    accepts_loss_kwargs = False  # every loss here is a mean, never divided by a count of labels outside
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] | None = ["R2D2CrossEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["temperature"]
    # A fine-tuned or pre-training checkpoint loads as the plain model: the head is left behind.
    _keys_to_ignore_on_load_unexpected: set[str] | list[str] | None = [r"^mlm_head\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, R2D2Model):
            init.constant_(module.temperature, self.config.temperature_init_value)

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: `_init_weights` here and in the towers uses `transformers.initialization` alone, which spares what
        was loaded. True would skip a tower's modules without parameters of their own where weights are missing."""
        return False

    def post_init(self):
        """As in transformers. DistributedDataParallel, which writes to every buffer before each forward pass, is told
        of the constant ones (positions), so that several forward passes may come before a backward pass.

        What is unexpected in a checkpoint is judged by this class alone: its parts' patterns are made for names that
        begin within the part, and would hide a layer that the configuration lacks.
        """
        super().post_init()
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected or ())
        changing = tuple(f"{name}." for name in batch_norms(self))
        self._ddp_params_and_buffers_to_ignore = [n for n, _ in self.named_buffers() if not n.startswith(changing)]

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any):
        """As in transformers, but an image tower without attention (ResNet, ConvNeXt) ignores the switch."""
        if not _has_attention(self.config.vision_config):
            if isinstance(attn_implementation, str):
                attn_implementation = dict.fromkeys(("", *self.config.sub_configs), attn_implementation)
            attn_implementation = {**attn_implementation, "vision_config": "eager"}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: that of the first parameter but the temperature, which stays in float32, that is not
        the integers or float8 of a quantised weight."""
        return computing_dtype(self)

    def bounded_temperature(self) -> Tensor:
        """The learned temperature τ within [temperature_min, temperature_max], float32.

        Its gradient is that of the parameter, so that it never dies at the bounds. While training, the parameter
        itself is put back within them, as the authors' code does: no optimizer step begins outside.
        """
        low, high = self.config.temperature_min, self.config.temperature_max
        if not (torch.is_grad_enabled() and self.temperature.requires_grad):
            return self.temperature.float().clamp(low, high)
        # Tensors that torch.func hands in are the caller's. By `data`, since graphs of earlier forward passes hold the
        # parameter's version, and their values stay right: only an optimizer step can have left the bounds. An exported
        # program holds no such change.
        if self.training and isinstance(self.temperature, nn.Parameter) and not torch.compiler.is_exporting():
            self.temperature.data.clamp_(low, high)
        temperature = self.temperature.float()
        return temperature.detach().clamp(low, high) + (temperature - temperature.detach())

    def _encode_images(self, pixel_values: Tensor, **kwargs: Any) -> tuple[Tensor, BaseModelOutputWithPooling]:
        """Images (I, 3, H, W) to the image tower's last hidden states (I, N, D), a feature map's flattened, and to all
        that it returns."""
        _refuse_empty(pixel_values, "pixel_values")
        if of_texts := sorted({"input_ids", "attention_mask", "token_type_ids"} & kwargs.keys()):
            raise ValueError(f"the image tower reads no texts: leave {', '.join(of_texts)} out")
        pixel_values = pixel_values.to(computing_dtype(self.vision_model))
        outputs = self.vision_model(pixel_values, **self._vision_arguments(pixel_values, kwargs))
        states = outputs.last_hidden_state
        if states.dim() == 4:  # a feature map (I, D, h, w)
            states = states.flatten(2).transpose(1, 2)
        return states, outputs

    def _vision_arguments(self, pixel_values: Tensor, kwargs: dict) -> dict:
        """What of `kwargs` the tower takes, and the interpolation of position embeddings where it is needed."""
        accepted = inspect.signature(type(self.vision_model).forward).parameters
        arguments = {"return_dict": True, **kwargs}
        if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            arguments = {k: v for k, v in arguments.items() if k in accepted}
        if "interpolate_pos_encoding" not in accepted or "interpolate_pos_encoding" in kwargs:
            return arguments
        height, width = pixel_values.shape[-2:]
        trained, patch = (_pair(getattr(self.config.vision_config, n)) for n in ("image_size", "patch_size"))
        if (height, width) != trained:
            if height % patch[0] or width % patch[1]:
                raise ValueError(
                    f"image size {height}×{width} is not a multiple of the patch size {patch[0]}×{patch[1]}"
                )
            arguments["interpolate_pos_encoding"] = True
        return arguments

    def enable_input_require_grads(self):
        """As in transformers, also for towers whose input embeddings return (states, size), as Swin's do."""

        def require(module, arguments, output):
            (output[0] if isinstance(output, tuple) else output).requires_grad_(True)

        embeddings = []
        for tower in (self, self.vision_model):
            with contextlib.suppress(NotImplementedError):  # a convolutional tower embeds nothing
                embeddings.append(tower.get_input_embeddings())
        self._require_grads_hooks = [e.register_forward_hook(require) for e in dict.fromkeys(embeddings)]
        if self._require_grads_hooks:
            self._require_grads_hook = self._require_grads_hooks[0]

    def save_pretrained(self, save_directory, *args: Any, **kwargs: Any):
        """As in transformers; a class registered for remote code also records every Auto class that applies."""
        # of this class alone: the folder that the configuration came from may have held more
        self.config.auto_map = {} if self._auto_class is None else self._auto_map()
        super().save_pretrained(save_directory, *args, **kwargs)
        _open_weights(save_directory)

    def _auto_map(self) -> dict[str, str]:
        model = "modeling_r2d2.R2D2Model"
        return {"AutoModel": model, "AutoModelForZeroShotImageClassification": model}


def _open_weights(folder) -> None:
    """Give weights the mode that umask gave the configuration beside them: safetensors writes for the owner alone."""
    config = Path(folder) / "config.json"
    for path in Path(folder).glob("model*.safetensors") if config.is_file() else ():
        path.chmod(stat.S_IMODE(config.stat().st_mode))


#: The norm that some towers apply to their pooled output alone, which R2D2 never reads.
_POOLED_NORM = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}


def _tower_class(vision_config: PreTrainedConfig) -> type[PreTrainedModel]:
    tower = MODEL_MAPPING[type(vision_config)]
    return cast(type[PreTrainedModel], tower[0] if isinstance(tower, (list, tuple)) else tower)


def _has_attention(vision_config: PreTrainedConfig) -> bool:
    tower = _tower_class(vision_config)
    return tower._supports_sdpa or tower._supports_flash_attn or tower._supports_attention_backend


class R2D2TextModel(BertModel):
    """The text tower, a BERT without pooler: `input_ids` and `attention_mask` (T, L) to `last_hidden_state` (T, L, D).

    What it saves loads as a plain `BertModel`, and it loads its part of a whole R2D2 checkpoint.
    """

    config: R2D2TextConfig
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = [r"^(?!text_model\.|embeddings\.|encoder\.)"]  # the rest of the R2D2

    def __init__(self, config: R2D2TextConfig, add_pooling_layer: bool = False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)


class R2D2Model(R2D2PreTrainedModel):
    """The towers, pre-ranking and, unless `config.cross_encoder_config` is None (PRD2), the ranker.

    The features of the image tower are its last hidden states; a CLIP tower's `post_layernorm` and the poolers
    of other towers are read by nothing and left out.
    """

    _auto_class = "AutoModel"
    #: `integrations.warm_start.from_vision_text_pretrained`, where the package is installed.
    from_vision_text_pretrained: ClassVar[Callable[..., Any]]

    def __init__(self, config: R2D2Config):
        super().__init__(config)
        text_size, vision_size = config.text_config.hidden_size, config.vision_hidden_size
        self.vision_model = _vision_tower(config.vision_config)
        self.text_model = R2D2TextModel._from_config(config.text_config)
        self.vision_projection = nn.Linear(vision_size, config.projection_dim)
        self.text_projection = nn.Linear(text_size, config.projection_dim)
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

    def _add_heads(self):
        """Where a subclass adds modules, before weights are initialised and tied."""

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the text tower's token embeddings."""
        self.text_model.set_input_embeddings(value)

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
        pooled = states[:, 0] if self.config.vision_pooling == "cls" else states.mean(dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=states,
            pooler_output=self.vision_projection(pooled),
            hidden_states=outputs.hidden_states,
            attentions=outputs.get("attentions"),
        )

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L).

        Returns:
            `last_hidden_state` (T, L, D) and the unnormalised embedding (T, P) in `pooler_output`.

        Raises:
            ValueError: empty batch, more tokens than the position table holds, ids outside the vocabulary.
        """
        _refuse_empty(input_ids, "input_ids")
        self._check_tokens(input_ids)
        outputs = self.text_model(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.text_projection(outputs.last_hidden_state[:, 0]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _check_tokens(self: PreTrainedModel, input_ids: Tensor):
        if torch.compiler.is_compiling():
            return
        config = self.config.text_config
        if input_ids.shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"a text of {input_ids.shape[1]} tokens exceeds the {config.max_position_embeddings} positions of the "
                "text tower; truncate it (R2D2Processor and R2D2ZeroShotImageClassificationPipeline do)"
            )
        if input_ids.device.type == "cpu" and int(input_ids.max()) >= config.vocab_size:
            raise ValueError(
                f"token id {int(input_ids.max())} is outside the vocabulary of {config.vocab_size}: "
                "the tokenizer does not belong to this model"
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
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
        batch = len(image_embeds)
        all_ids = torch.arange(batch * world_size(), device=image_embeds.device)
        ids = all_ids[process_index() * batch : (process_index() + 1) * batch]
        temperature = self.bounded_temperature()
        return pre_ranking_loss(
            scaled_similarity(image_embeds, gather(text_embeds), temperature),
            scaled_similarity(text_embeds, gather(image_embeds), temperature),
            contrastive_targets(same_identity(ids, all_ids)),
        )

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
        self._require_ranker()
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
        self._require_ranker()
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
        if self.config.vision_pooling == "mean":  # a tower without [CLS]: the mean of its tokens stands in for it
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

    def _require_ranker(self):
        if not self.can_rank:
            raise ValueError(
                "this model is pre-ranking only (PRD2: cross_encoder_config is None); it has cosine scores but no "
                "match probability"
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


#: What is computed in; weights that are stored otherwise are quantised.
_COMPUTING_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def computing_dtype(module: nn.Module) -> torch.dtype:
    """Of the first parameter of a tower or model that is neither quantised (integers, float8) nor its temperature."""
    for name, parameter in module.named_parameters():
        if parameter.dtype in _COMPUTING_DTYPES and name != "temperature":
            return parameter.dtype
    return torch.get_default_dtype()


def normalize(embeddings: Tensor) -> Tensor:
    """L2 norm over the last dimension, computed in float32, returned in the embeddings' dtype."""
    return nn.functional.normalize(embeddings.float(), dim=-1).to(embeddings.dtype)


def match_probability(text_match_logits: Tensor, image_match_logits: Tensor) -> Tensor:
    """Mean over both encoders of softmax(logits)[class 1]: (P, 2), (P, 2) -> (P,) float32."""
    logits = torch.stack([text_match_logits, image_match_logits]).float()
    return logits.softmax(dim=-1)[..., 1].mean(dim=0)


def _vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """The image tower of `config`, without the head that R2D2 never reads."""
    tower = _tower_class(config)
    if not _has_attention(config):
        config._attn_implementation = "eager"
    if getattr(config, "vision_use_head", None):
        config.vision_use_head = False
    if "add_pooling_layer" in inspect.signature(tower.__init__).parameters:
        return tower._from_config(config, add_pooling_layer=False)
    model = AutoModel.from_config(config)
    if config.model_type in _POOLED_NORM:
        setattr(model, _POOLED_NORM[config.model_type], nn.Identity())
    return model


def _pair(value: int | list | tuple) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def refuse_missing(pixel_values: Tensor | None, input_ids: Tensor | None, what: str | None = None) -> None:
    """ValueError where both are missing, or one of them that `what` needs beside the other."""
    missing = [n for n, given in (("pixel_values", pixel_values), ("input_ids", input_ids)) if given is None]
    if len(missing) == 2:
        raise ValueError("there is nothing to encode: give pixel_values, input_ids, or both")
    if missing and what is not None:
        raise ValueError(f"{what} takes images and texts, pair by pair, and {missing[0]} is missing")


def refuse_unequal(image_embeds: Tensor, text_embeds: Tensor) -> None:
    """ValueError where the numbers of images and texts differ."""
    if len(image_embeds) != len(text_embeds):
        raise ValueError(
            f"return_loss pairs image i with text i, but there are {len(image_embeds)} images "
            f"and {len(text_embeds)} texts"
        )


def _refuse_empty(tensor: Tensor, name: str):
    if not torch.compiler.is_compiling() and tensor.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch")


__all__ = [
    "R2D2CrossEncoder",
    "R2D2ForImageTextMatching",
    "R2D2MatchOutput",
    "R2D2Model",
    "R2D2Output",
    "R2D2PreTrainedModel",
    "R2D2TextModel",
]
