"""Configuration of BriVL, the model of WenLan (arXiv 2103.06561; Nature Communications 2022).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import math
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import EfficientNetConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_r2d2 import R2D2Config, R2D2CrossEncoderConfig, R2D2TextConfig
from .presets_r2d2 import BRIVL_PRESETS
from .ranges_r2d2 import COUNT, require_numbers


@strict
class BriVLTransformerConfig(R2D2CrossEncoderConfig):
    """The post-norm transformer that each of BriVL's towers ends in, over regions or over tokens; fields as there."""

    model_type = "brivl_transformer"
    base_config_key = "transformer_config"

    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 2048
    hidden_act: str = "relu"
    layer_norm_eps: float = 1e-5


_TRANSFORMER = {"transformer_config": SubConfigSpec(BriVLTransformerConfig)}


def _of_width(transformer: Any, width: int) -> Any:
    """A tower's `transformer_config` as it was given, a dict with the width of the tower."""
    return transformer if isinstance(transformer, PreTrainedConfig) else {"hidden_size": width, **(transformer or {})}


def _require_width(transformer: PreTrainedConfig, width: int, within: str) -> None:
    if transformer.hidden_size != width:
        raise ValueError(f"{within}.transformer_config: hidden_size is {transformer.hidden_size}, not {width}")


@strict
class BriVLVisionConfig(EfficientNetConfig):
    """Image tower: an EfficientNet, means over the boxes of a picture, a transformer over these regions. The defaults
    are EfficientNet-B5's, of 380 pixels.

    Attributes:
        image_size: side of the pictures. No other is taken: where a convolution of stride 2 pads depends on it.
        depthwise_padding: computed from `image_size`, whatever is given.
        transformer_config: over the regions.
        region_grid: G, a region is the mean of G × G samples of its box.
        box_grid: the boxes of a picture that comes without any: so many rows and columns of equal cells, and the whole
            picture (as in the authors' program of 2022).
        frozen_stages: how many of the first stages do not train where `BriVLConfig.freeze_lower_layers`.
    """

    model_type = "brivl_vision_model"
    base_config_key = "vision_config"
    sub_configs_defaults = _TRANSFORMER

    if TYPE_CHECKING:
        image_size: int
    else:
        image_size: int | list[int] | tuple[int, int] = 380
    width_coefficient: float = 1.6
    depth_coefficient: float = 2.2
    hidden_dim: int = 2048
    # the weights, the losses and the running statistics are the authors' with these: torch's momentum of a batch norm,
    # and no dropped paths
    batch_norm_momentum: float = 0.1
    drop_connect_rate: float | int = 0.0
    if TYPE_CHECKING:
        transformer_config: BriVLTransformerConfig
    else:
        transformer_config: dict | PreTrainedConfig | None = None
    region_grid: int = 4
    box_grid: int = 6
    frozen_stages: int = 3

    def __post_init__(self, **kwargs):
        if isinstance(self.image_size, (list, tuple)) and len(set(self.image_size)) == 1:
            self.image_size = self.image_size[0]
        self.transformer_config = _of_width(self.transformer_config, self.hidden_dim)
        super().__post_init__(**kwargs)
        self.num_hidden_layers = self.transformer_config.num_hidden_layers
        if isinstance(self.image_size, int):
            self.depthwise_padding = self._padded_on_both_sides()

    def validate_architecture(self):
        """What the parts must agree on.

        Raises:
            ValueError: they do not; names the values.
        """
        require_numbers(self, dict.fromkeys(("region_grid", "box_grid"), COUNT), "vision_config: ")
        if not isinstance(self.image_size, int) or self.image_size < 2 or self.image_size % 2:
            raise ValueError(f"vision_config: image_size is {self.image_size}; it must be one even number")
        if self.map_side < 2:
            raise ValueError(
                f"vision_config: image_size {self.image_size} leaves a map of 1 × 1, on which boxes have no places: "
                "use 34 pixels or more"
            )
        if not 0 <= self.frozen_stages <= len(self.strides):
            raise ValueError(
                f"vision_config: frozen_stages is {self.frozen_stages}, and there are {len(self.strides)} stages"
            )
        _require_width(self.transformer_config, self.hidden_dim, "vision_config")

    def blocks(self) -> list[tuple[int, int]]:
        """(stage, stride) of every block of the EfficientNet, in order."""
        found = []
        for stage, (repeats, stride) in enumerate(zip(self.num_block_repeats, self.strides, strict=True)):
            count = math.ceil(self.depth_coefficient * repeats)
            found += [(stage, stride), *[(stage, 1)] * (count - 1)]
        return found

    def _sides(self) -> list[int]:
        """Side of the map before every block, and at last behind all of them."""
        sides = [math.ceil(self.image_size / 2)]  # behind the stem
        for _, stride in self.blocks():
            sides.append(math.ceil(sides[-1] / stride))
        return sides

    @property
    def map_side(self) -> int:
        """W, side of the last map."""
        return self._sides()[-1]

    def _padded_on_both_sides(self) -> list[int]:
        """The blocks of stride 2 on a map of odd side: TensorFlow's SAME pads these alike on both sides, and the others
        one more at the right and the bottom."""
        sides = self._sides()
        return [i for i, (_, stride) in enumerate(self.blocks()) if stride == 2 and sides[i] % 2]


@strict
class BriVLTextConfig(R2D2TextConfig):
    """Text tower: BERT, and a transformer over its states.

    Attributes:
        transformer_config: over the tokens.
        padded_length: every text is padded to so many tokens, all of which BERT reads; `BriVLConfig.max_text_length`.
        frozen_layers: how many of BERT's first layers, and its embeddings, do not train where
            `BriVLConfig.freeze_lower_layers`; None: all but the last four.
    """

    model_type = "brivl_text_model"
    sub_configs_defaults = _TRANSFORMER

    if TYPE_CHECKING:
        transformer_config: BriVLTransformerConfig
        frozen_layers: int
    else:
        transformer_config: dict | PreTrainedConfig | None = None
        frozen_layers: int | None = None
    padded_length: int = 80

    def __post_init__(self, **kwargs):
        self.transformer_config = _of_width(self.transformer_config, self.hidden_size)
        super().__post_init__(**kwargs)
        if self.frozen_layers is None:
            self.frozen_layers = max(self.num_hidden_layers - 4, 0)

    def validate_architecture(self):
        """What the parts must agree on.

        Raises:
            ValueError: they do not; names the values.
        """
        super().validate_architecture()
        require_numbers(self, {"padded_length": COUNT}, "text_config: ")
        if self.padded_length > self.max_position_embeddings:
            raise ValueError(
                f"texts are padded to {self.padded_length} tokens (max_text_length), and the text tower has "
                f"{self.max_position_embeddings} positions"
            )
        if self.pad_token_id is None:
            raise ValueError("text_config: pad_token_id is None, and every text is padded")
        if not 0 <= self.frozen_layers <= self.num_hidden_layers:
            raise ValueError(
                f"text_config: frozen_layers is {self.frozen_layers}, and there are {self.num_hidden_layers} layers"
            )
        _require_width(self.transformer_config, self.hidden_size, "text_config")


@strict
class BriVLConfig(R2D2Config):
    """BriVL: what `R2D2Config` says of two towers, with towers of its own kinds and an MLP behind each. It has no
    ranker unless `cross_encoder_config` is given (ours).

    Attributes:
        vision_config: a `BriVLVisionConfig`.
        text_config: a `BriVLTextConfig`.
        max_text_length: every text is padded to so many tokens **within the model**, since its BERT reads padding: with
            another number a text has another embedding.
        freeze_lower_layers: while training, the authors' rule of what trains: both transformers, the projections, the
            EfficientNet from stage `frozen_stages` on without its head, the last layers of BERT. Batch norms of what is
            frozen stay in evaluation mode, so that it does stand still (ours; the authors' running statistics drift).
    """

    model_type = "brivl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(BriVLVisionConfig),
        "text_config": SubConfigSpec(BriVLTextConfig),
        "cross_encoder_config": SubConfigSpec(R2D2CrossEncoderConfig, optional=True),
    }

    if not TYPE_CHECKING:
        cross_encoder_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 2048
    vision_pooling: str | None = "pooler"
    text_pooling: str | None = "pooler"
    projection: Literal["affine", "linear", "mlp", "none"] = "mlp"
    max_text_length: int = 80
    freeze_lower_layers: bool = False

    def __post_init__(self, **kwargs):
        self.vision_config = {} if self.vision_config is None else self.vision_config
        text = {} if self.text_config is None else self.text_config
        if isinstance(text, dict):
            fields = {name: value for name, value in text.items() if name != "model_type"}
            self.text_config = BriVLTextConfig(**{**fields, "padded_length": self.max_text_length})
        else:
            text.padded_length = self.max_text_length
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "BriVLConfig":
        """Configuration of an official size: `brivl-b5-380` or `brivl-b5-456`, the same weights on pictures of another
        size. `overrides` are BriVLConfig arguments.

        Raises:
            ValueError: unknown name.
        """
        if name not in BRIVL_PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(BRIVL_PRESETS)}")
        return cls(**{**BRIVL_PRESETS[name], **overrides})


__all__ = ["BriVLConfig", "BriVLTextConfig", "BriVLTransformerConfig", "BriVLVisionConfig"]
