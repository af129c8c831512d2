"""What models of an image and a text tower have in common: R2D2 and its kin, and Wukong.

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import contextlib
import inspect
import stat
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .batch_norms_r2d2 import batch_norms
from .configuration_r2d2 import text_positions


class TwoTowerPreTrainedModel(PreTrainedModel):
    """Base: weight initialisation, attention switches, the image tower's pass, and what is saved for remote code."""

    config: Any
    temperature: nn.Parameter
    vision_model: PreTrainedModel
    input_modalities = ["image", "text"]
    #: What of a batch goes to `get_image_features`; all else is of the texts, or of the loss.
    image_inputs: tuple[str, ...] = ("pixel_values",)
    accepts_loss_kwargs = False  # every loss here is a mean, never divided by a count of labels outside
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["temperature"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, TwoTowerPreTrainedModel) and hasattr(module, "temperature"):
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
        if not _has_attention(type(self.vision_model)):
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
        # parameter's version, and their values stay right: only an optimizer step can have left the bounds. A program
        # that is exported without dynamo cannot hold such a change. (In torch 2.10 dynamo takes itself for an export.)
        exporting = torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
        if self.training and isinstance(self.temperature, nn.Parameter) and not exporting:
            self.temperature.data.clamp_(low, high)
        temperature = self.temperature.float()
        return temperature.detach().clamp(low, high) + (temperature - temperature.detach())

    def _encode_images(self, pixel_values: Tensor, **kwargs: Any) -> tuple[Tensor, BaseModelOutputWithPooling]:
        """Images (I, 3, H, W) to the image tower's last hidden states (I, N, D), a feature map's flattened, and to all
        that it returns."""
        refuse_empty(pixel_values, "pixel_values")
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
        """The Auto classes that a saved folder loads with as remote code, and by which class of which file."""
        return {}

    def _pooled(self, states: Tensor, outputs: BaseModelOutputWithPooling) -> Tensor:
        """(I, D) of an image tower's states (I, N, D), or of all that it returned: what pre-ranking reads."""
        return pooled(self.config.vision_pooling, states, outputs)


class TextTowerMixin:
    """Of models whose input embeddings are those of `text_model`."""

    text_model: Any  # every model's own kind

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embeddings."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace the text tower's token embeddings."""
        self.text_model.set_input_embeddings(value)


def pooled(
    pooling: str | None, states: Tensor, outputs: BaseModelOutputWithPooling, mask: Tensor | None = None
) -> Tensor:
    """(B, D) of a tower's last hidden states (B, L, D), as `R2D2Config` says.

    Args:
        pooling: "cls", the first state; "mean", over the real tokens; "last", the state of the last real token;
            "pooler", what the tower's own pooler made of them.
        outputs: of the tower.
        mask: (B, L), nonzero on real tokens; None: all are.

    Raises:
        ValueError: "pooler" of a tower that has none.
    """
    if pooling == "pooler":
        made = outputs.pooler_output
        if made is None:
            raise ValueError("the tower has no pooler: its pooling must be 'cls', 'mean' or 'last'")
        return made.flatten(1)  # a ResNet's is (B, D, 1, 1)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "mean":
        return mean_of_tokens(states, mask)
    if mask is None:
        return states[:, -1]
    place = torch.arange(1, states.shape[1] + 1, device=states.device) * (mask != 0)
    return states[torch.arange(len(states), device=states.device), place.argmax(dim=1)]


def mean_of_tokens(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, D) of states (B, L, D): their mean over the real tokens, where `mask` (B, L) is nonzero; None: all are."""
    if mask is None:
        return states.mean(dim=1)
    weight = mask.to(states.dtype).unsqueeze(-1)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def projection(kind: str, width: int, size: int) -> nn.Module:
    """What brings pooled states (…, width) to embeddings (…, size): `R2D2Config.projection`."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size))
    return nn.Identity() if kind == "none" else nn.Linear(width, size, bias=kind == "affine")


#: The norm that some towers apply to their pooled output alone: left out where only their states are read.
POOLED_NORM = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}


def _tower_class(vision_config: PreTrainedConfig) -> type[PreTrainedModel]:
    tower = MODEL_MAPPING[type(vision_config)]
    return cast(type[PreTrainedModel], tower[0] if isinstance(tower, (list, tuple)) else tower)


def _has_attention(tower: type[PreTrainedModel]) -> bool:
    return tower._supports_sdpa or tower._supports_flash_attn or tower._supports_attention_backend


def vision_tower(config: PreTrainedConfig, pooler: bool = False) -> PreTrainedModel:
    """The image tower of `config`; without its own pooler, unless that is what pre-ranking reads."""
    tower = _tower_class(config)
    if not _has_attention(tower):
        config._attn_implementation = "eager"
    if hasattr(config, "vision_use_head"):
        config.vision_use_head = pooler
    if "add_pooling_layer" in inspect.signature(tower.__init__).parameters:
        return tower._from_config(config, add_pooling_layer=pooler)
    model = AutoModel.from_config(config)
    if config.model_type in POOLED_NORM and not pooler:
        setattr(model, POOLED_NORM[config.model_type], nn.Identity())
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


def refuse_empty(tensor: Tensor, name: str):
    if not torch.compiler.is_compiling() and tensor.shape[0] == 0:
        raise ValueError(f"{name} is an empty batch")


def _open_weights(folder) -> None:
    """Give weights the mode that umask gave the configuration beside them: safetensors writes for the owner alone."""
    config = Path(folder) / "config.json"
    for path in Path(folder).glob("model*.safetensors") if config.is_file() else ():
        path.chmod(stat.S_IMODE(config.stat().st_mode))


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


def check_tokens(input_ids: Tensor, config: PreTrainedConfig) -> None:
    """Refuse texts (T, L) that the text tower of `config` cannot read; nothing while torch compiles.

    Raises:
        ValueError: an empty batch, more tokens than the position table holds, ids outside the vocabulary (looked at on
            the CPU alone).
    """
    refuse_empty(input_ids, "input_ids")
    if torch.compiler.is_compiling():
        return
    if input_ids.shape[1] > text_positions(config):
        raise ValueError(
            f"a text of {input_ids.shape[1]} tokens exceeds the {text_positions(config)} positions of the "
            "text tower; truncate it (R2D2Processor and R2D2ZeroShotImageClassificationPipeline do)"
        )
    if input_ids.device.type == "cpu" and int(input_ids.max()) >= config.vocab_size:
        raise ValueError(
            f"token id {int(input_ids.max())} is outside the vocabulary of {config.vocab_size}: "
            "the tokenizer does not belong to this model"
        )


def check_padded(input_ids: Tensor, config: PreTrainedConfig) -> None:
    """Refuse texts (T, L) that a text tower which reads its padding was not trained on (`config.attend_padding`).

    Raises:
        ValueError: their length is not `config.max_text_length`.
    """
    if input_ids.shape[1] != config.max_text_length:
        raise ValueError(
            f"texts of {input_ids.shape[1]} tokens: this text tower reads padding too, and was trained on "
            f"{config.max_text_length} tokens a text (R2D2Processor and R2D2ZeroShotImageClassificationPipeline pad so)"
        )


def real_tokens(input_ids: Tensor, config: PreTrainedConfig) -> Tensor:
    """What a text tower takes for real where no mask is given, (T, L) boolean: every token, or, of one that pads by
    itself (BriVL), those that are not the pad token."""
    if getattr(config, "padded_length", None):
        return input_ids.ne(cast(int, config.pad_token_id))
    return torch.ones_like(input_ids, dtype=torch.bool)


def require_ranker(
    config: PreTrainedConfig, what: str = "a match probability", instead: str = "", place: object = None
) -> None:
    """Refuse a model without cross encoders.

    Args:
        config: of the model.
        what: needs a ranker.
        instead: what to do without one.
        place: where the model is; default: where its configuration says that it came from.

    Raises:
        ValueError: names the model, and says all this.
    """
    if getattr(config, "cross_encoder_config", None) is None:
        name = place or config.name_or_path or "this model"
        raise ValueError(
            f"{name} is pre-ranking only (PRD2, Wukong, BriVL: no cross_encoder_config), and "
            f"{what} needs a ranker{instead and f': {instead}'}"
        )
