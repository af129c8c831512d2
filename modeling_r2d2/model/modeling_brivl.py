"""BriVL, the model of WenLan (arXiv 2103.06561; Nature Communications 2022): regions of an EfficientNet's map and the
states of a BERT, a transformer over each, and a projected mean of what it gives.

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import EfficientNetModel, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .batch_norms_r2d2 import batch_norms
from .configuration_brivl import BriVLConfig, BriVLTextConfig, BriVLTransformerConfig, BriVLVisionConfig
from .configuration_r2d2 import R2D2Config
from .cross_encoder_r2d2 import R2D2Attention
from .modeling_r2d2 import R2D2Model, R2D2TextModel
from .two_towers_r2d2 import normalize, pooled, real_tokens


class BriVLTransformerLayer(GradientCheckpointingLayer):
    """Post-norm layer: x ← LN(x + SelfAttention(x)), LN(x + W₂·relu(W₁·x)). Dropout on the attention's weights and
    result, on the hidden units and on their result."""

    def __init__(self, config: BriVLTransformerConfig):
        super().__init__()
        self.self_attn = R2D2Attention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation: Callable = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        attended, _ = self.self_attn(hidden_states, hidden_states, attention_mask, **kwargs)
        hidden_states = self.self_attn_layer_norm(hidden_states + self.dropout(attended))
        hidden = self.dropout(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + self.dropout(self.fc2(hidden)))


class BriVLTransformer(PreTrainedModel):
    """Layers over regions or tokens, without positions and without a last norm."""

    config: BriVLTransformerConfig
    main_input_name = "hidden_states"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BriVLTransformerLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "hidden_states": BriVLTransformerLayer,
        "attentions": OutputRecorder(R2D2Attention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: BriVLTransformerConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(BriVLTransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutput:
        """States (B, L, D), mask (B, L) true on real ones; None: all are."""
        mask = None
        if attention_mask is not None:
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
            )
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class _BriVLTower(PreTrainedModel):
    """What both towers end in: their states, each brought to unit length, through the transformer, and the mean of
    the real ones."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    transformer: BriVLTransformer

    def _finish(self, states: Tensor, mask: Tensor | None, **kwargs: Any) -> BaseModelOutputWithPooling:
        """States (B, L, D), mask (B, L) boolean. What has no real state attends to all, and has the zero mean."""
        attended = None if mask is None else mask | ~mask.any(dim=1, keepdim=True)
        kwargs["return_dict"] = True
        for wanted in ("output_attentions", "output_hidden_states"):  # of the transformer; a tower's settings ask too
            if kwargs.get(wanted) is None:
                kwargs[wanted] = getattr(self.config, wanted)
        outputs = self.transformer(normalize(states), attended, **kwargs)
        outputs = BaseModelOutputWithPooling(**outputs)
        outputs.pooler_output = pooled("mean", cast(Tensor, outputs.last_hidden_state), outputs, mask)
        return outputs


class BriVLBackbone(EfficientNetModel):
    """transformers' EfficientNet without its pooler. Its weights begin at random otherwise: the library draws the
    scales of batch norms around 0, behind which next to nothing is left."""

    # it attends to nothing, whatever the implementation
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: BriVLVisionConfig):
        super().__init__(config)
        self.pooler = nn.Identity()  # type: ignore[assignment]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    def feature_map(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, S, S) -> (I, C, W, W), what the last convolution, its norm and its activation give."""
        return self.encoder(self.embeddings(pixel_values)).last_hidden_state


def grid_pooled(feature_map: Tensor, boxes: Tensor, image_size: int, grid: int) -> Tensor:
    """Means of boxes of a feature map: the map is read at the middles of G × G equal cells of every box.

    c_k = x₁ + (x₂ − x₁)(k + ½)/G, k = 0 … G − 1, in units of the map (box · W/S), is read at column c_k · W/(W−1) − ½
    (0 is the middle of the first column), bilinearly, 0 outside of the map; the same in y. The stretch by W/(W−1) is
    the authors', by which their weights were trained: they compute places for `align_corners` and read without it.

    Args:
        feature_map: (I, C, W, W).
        boxes: (I, M, 4), x₁, y₁, x₂, y₂ in pixels of an image of side S; they may lie outside or be upside down.
        image_size: S.
        grid: G.

    Returns:
        (I, M, C).
    """
    side = feature_map.shape[-1]
    boxes = boxes.float() * (side / image_size)
    middles = (torch.arange(grid, device=boxes.device, dtype=torch.float32) + 0.5) / grid
    start, end = boxes[..., None, :2], boxes[..., None, 2:]
    places = (start + (end - start) * middles[:, None]) * (2 / (side - 1)) - 1  # (I, M, G, 2)
    x, y = places.unbind(dim=-1)
    cells = torch.stack(torch.broadcast_tensors(x[..., None, :], y[..., :, None]), dim=-1)  # (I, M, G, G, 2)
    samples = nn.functional.grid_sample(feature_map.float(), cells.flatten(1, 2), align_corners=False)
    means = samples.unflatten(2, (-1, grid)).mean(dim=(3, 4))  # (I, C, M·G, G) -> (I, C, M)
    return means.transpose(1, 2).to(feature_map.dtype)


def box_grid(rows: int, image_size: int) -> Tensor:
    """The boxes of a picture that comes without any: rows × rows equal cells, column by column, and the whole picture,
    as in the authors' program of 2022: (rows² + 1, 4) float32."""
    edges = torch.arange(rows + 1, dtype=torch.float64) * (image_size / rows)
    corners = [torch.cartesian_prod(each, each).view(-1, 2) for each in (edges[:-1], edges[1:])]
    cells = torch.cat(corners, dim=1)
    whole = torch.tensor([[0, 0, image_size, image_size]], dtype=torch.float64)
    return torch.cat([cells, whole]).float()


class BriVLVisionModel(_BriVLTower):
    """The image tower."""

    config: BriVLVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: BriVLVisionConfig):
        super().__init__(config)
        self.backbone = BriVLBackbone._from_config(config)
        self.region_projection = nn.Linear(config.hidden_dim, config.hidden_dim)
        self.transformer = BriVLTransformer._from_config(config.transformer_config)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode pictures by their regions.

        Args:
            pixel_values: (I, 3, S, S), of `config.image_size`.
            boxes: (I, M, 4), see `grid_pooled`; None: `box_grid` for every picture.
            box_mask: (I, M), nonzero on real boxes; None: all are.

        Returns:
            `last_hidden_state` (I, M, D) of the regions, their mean (I, D) in `pooler_output`.

        Raises:
            ValueError: pictures of another size, boxes of another number of pictures, a mask without boxes.
        """
        size, count = self.config.image_size, pixel_values.shape[0]
        if tuple(pixel_values.shape[-2:]) != (size, size):
            height, width = pixel_values.shape[-2:]
            raise ValueError(
                f"pictures of {width}×{height} pixels: this tower pads for {size}×{size} and would compute something "
                "else; BriVLProcessor brings them there, vision_config.image_size makes the same weights a tower of "
                "another size"
            )
        if boxes is None:
            if box_mask is not None:
                raise ValueError("box_mask says which boxes are real, and there are no boxes")
            boxes = box_grid(self.config.box_grid, size).to(pixel_values.device).expand(count, -1, -1)
        elif boxes.dim() != 3 or boxes.shape[-1] != 4 or boxes.shape[0] != count:
            raise ValueError(f"boxes are (pictures, boxes, 4), here ({count}, boxes, 4), not {tuple(boxes.shape)}")
        feature_map = self.backbone.feature_map(pixel_values)
        means = grid_pooled(feature_map, boxes, size, self.config.region_grid)
        return self._finish(self.region_projection(means), None if box_mask is None else box_mask != 0, **kwargs)

    def lower_modules(self) -> list[nn.Module]:
        """What does not train where `BriVLConfig.freeze_lower_layers`."""
        stages = (stage for stage, _ in self.config.blocks())
        encoder = self.backbone.encoder
        lower = [b for b, stage in zip(encoder.blocks, stages, strict=True) if stage < self.config.frozen_stages]
        return [self.backbone.embeddings, *lower, encoder.top_conv, encoder.top_bn]


class BriVLTextModel(_BriVLTower):
    """The text tower. Its BERT reads padding, so every text is padded here to `config.padded_length` tokens: how far it
    was padded before makes no difference."""

    config: BriVLTextConfig
    main_input_name = "input_ids"
    input_modalities = ["text"]

    def __init__(self, config: BriVLTextConfig):
        super().__init__(config)
        self.bert = R2D2TextModel._from_config(config)
        self.transformer = BriVLTransformer._from_config(config.transformer_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """BERT's token embeddings."""
        return self.bert.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        """Replace them."""
        self.bert.set_input_embeddings(value)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """Encode texts.

        Args:
            input_ids: (T, L), L at most `config.padded_length`.
            attention_mask: (T, L), nonzero on real tokens, for the transformer and the mean; BERT sees none. None:
                those that are not the pad token.

        Returns:
            `last_hidden_state` (T, L, D), the mean (T, D) of the real tokens in `pooler_output`.
        """
        pad, length = cast(int, self.config.pad_token_id), input_ids.shape[1]
        mask = real_tokens(input_ids, self.config) if attention_mask is None else attention_mask != 0
        padded = nn.functional.pad(input_ids, (0, self.config.padded_length - length), value=pad)
        states = self.bert(padded, return_dict=True).last_hidden_state[:, :length]
        kwargs.pop("position_ids", None)  # they are those of the padded text
        return self._finish(states, mask, **kwargs)

    def lower_modules(self) -> list[nn.Module]:
        """What does not train where `BriVLConfig.freeze_lower_layers`."""
        return [self.bert.embeddings, *self.bert.encoder.layer[: self.config.frozen_layers]]


class BriVLModel(R2D2Model):
    """`R2D2Model` with BriVL's towers. `forward` takes `boxes` and `box_mask` too, see `get_image_features`."""

    config: BriVLConfig
    _auto_class = "AutoModel"
    base_model_prefix = "brivl"
    image_inputs = ("pixel_values", "boxes", "box_mask")
    vision_model: BriVLVisionModel
    text_model: BriVLTextModel

    def __init__(self, config: BriVLConfig):
        super().__init__(config)
        if config.freeze_lower_layers:
            self.freeze_lower_layers()

    def _towers(self, config: R2D2Config) -> tuple[PreTrainedModel, PreTrainedModel]:
        return BriVLVisionModel._from_config(config.vision_config), BriVLTextModel._from_config(config.text_config)

    def freeze_lower_layers(self, frozen: bool = True) -> "BriVLModel":
        """Whether only what `BriVLConfig.freeze_lower_layers` names trains; the configuration remembers it."""
        self.config.freeze_lower_layers = frozen
        for module in self._lower_modules():
            module.requires_grad_(not frozen)
        return self.train(self.training)

    def _lower_modules(self) -> list[nn.Module]:
        return [*self.vision_model.lower_modules(), *self.text_model.lower_modules()]

    def train(self, mode: bool = True) -> Any:
        """As in torch, but what is frozen stays so, its batch norms in evaluation mode."""
        super().train(mode)
        if self.config.freeze_lower_layers:
            for module in self._lower_modules():
                module.requires_grad_(False)  # again: from_pretrained replaces parameters, then calls eval()
                for norm in batch_norms(module).values():
                    norm.eval()
        return self

    def get_image_features(
        self,
        pixel_values: Tensor,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `R2D2Model.get_image_features`, of pictures of `vision_config.image_size`.

        Args:
            pixel_values: (I, 3, S, S).
            boxes: (I, M, 4), x₁, y₁, x₂, y₂ in pixels of `pixel_values`, as `BriVLProcessor` makes them; None: equal
                cells and the whole picture.
            box_mask: (I, M), nonzero on real boxes; None: all are.

        Returns:
            `last_hidden_state` (I, M, D) of the regions, the unnormalised embedding (I, P) in `pooler_output`.

        Raises:
            ValueError: pictures of another size, boxes that do not belong to them.
        """
        return super().get_image_features(pixel_values, boxes=boxes, box_mask=box_mask, **kwargs)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        boxes: Tensor | None = None,
        box_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """As `R2D2Model.get_text_features`; boxes, which `forward` hands to both towers, are not read."""
        return super().get_text_features(input_ids, attention_mask, **kwargs)

    def _auto_map(self) -> dict[str, str]:
        model = "modeling_brivl.BriVLModel"
        return {"AutoModel": model, "AutoModelForZeroShotImageClassification": model}


__all__ = [
    "BriVLBackbone",
    "BriVLModel",
    "BriVLTextModel",
    "BriVLTransformer",
    "BriVLVisionModel",
    "box_grid",
    "grid_pooled",
]
