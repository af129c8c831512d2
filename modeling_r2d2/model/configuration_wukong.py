"""Configuration of Wukong (arXiv 2202.06767): CLIP, FILIP and Wukong with Chinese text.

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPTextConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_r2d2 import IMPLIED_VISION_POOLING, R2D2Config, require_temperatures
from .presets_r2d2 import WUKONG_PRESETS
from .ranges_r2d2 import COUNT, NOT_NEGATIVE, require_numbers

SIMILARITIES = ("global", "token-wise")
TEXT_PADDINGS = ("excluded", "zero")


@strict
class WukongTextConfig(CLIPTextConfig):
    """Text tower: the causal transformer of CLIP, 32 positions, the 21,128-token Chinese vocabulary.

    `model_type` stays `"clip_text_model"`, so a saved text tower loads as a plain `CLIPTextModel`.
    """

    base_config_key = "text_config"

    vocab_size: int = 21128
    max_position_embeddings: int = 32
    pad_token_id: int | None = 0
    bos_token_id: int | None = 101
    eos_token_id: int | list[int] | None = 102


@strict
class WukongConfig(PreTrainedConfig):
    """Two towers and one similarity (arXiv 2202.06767).

    Attributes:
        vision_config: CLIP ViT-B/32 by default, or any transformers vision model by its `model_type`
            (`{"model_type": "swin", ...}`).
        text_config: the causal text tower.
        projection_dim: width of the embeddings, or of each token's.
        similarity: `"global"` (CLIP: one vector per image and text) or `"token-wise"` (FILIP, Wukong).
        token_reduction: number of image tokens that the token-reduction layer leaves (Wukong), None = all (FILIP).
        token_reduction_groups: groups of its 1×1 convolutions.
        text_padding: with token-wise similarity, `"excluded"`: padding is never a candidate of an image token;
            `"zero"`: it is one, with similarity 0, wherever a text is shorter than `max_position_embeddings`, as in
            the authors' code, which pads every text to 32 tokens and sets the features of padding to zero.
        similarity_chunk_size: images and texts compared at a time; bounds the memory of the token-wise similarity.
        temperature_init_value: of the learned temperature; logits = similarity / temperature.
        temperature_min: the learned temperature stays above.
        temperature_max: the learned temperature stays below.
        vision_pooling: `"cls"` or `"mean"`: what global similarity reads from the image tower; `"cls"` also means
            that the first token is no patch. None: implied by the tower's type; a type that implies none raises
            `ValueError`.
        vision_projection_bias: None: only for Swin, as in the authors' code.
        lock_image_tower: locked-image tuning: the image tower is frozen and stays in evaluation mode.
        max_text_length: tokens a processor of this model keeps.
    """

    model_type = "wukong"
    _auto_class = "AutoConfig"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(WukongTextConfig),
    }
    # what Trainer need not carry through an evaluation: only the embeddings are left
    keys_to_ignore_at_inference = [
        "logits_per_image",
        "logits_per_text",
        "text_model_output",
        "vision_model_output",
        "text_mask",
    ]

    if TYPE_CHECKING:  # what a dict, or None, has become once the configuration is made
        vision_config: PreTrainedConfig
        text_config: WukongTextConfig

        def __init__(self, **fields: Any) -> None: ...
    else:
        vision_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    similarity: str = "global"
    token_reduction: int | None = None
    token_reduction_groups: int = 8
    text_padding: str = "excluded"
    similarity_chunk_size: int = 64
    temperature_init_value: float = 0.07
    temperature_min: float = 0.001
    temperature_max: float = 0.5
    vision_pooling: str | None = None
    vision_projection_bias: bool | None = None
    lock_image_tower: bool = False
    max_text_length: int = 32
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        vision_type = self.vision_config.model_type
        if self.vision_pooling is None:
            self.vision_pooling = IMPLIED_VISION_POOLING.get(vision_type)
        if self.vision_projection_bias is None:
            self.vision_projection_bias = vision_type.startswith("swin")

    def validate_architecture(self):
        """What the parts must agree on.

        Raises:
            ValueError: they do not; names the values.
        """
        for name, value, allowed in (
            ("similarity", self.similarity, SIMILARITIES),
            ("text_padding", self.text_padding, TEXT_PADDINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        if self.vision_pooling not in ("cls", "mean"):
            raise ValueError(
                f"vision_pooling must be 'cls' or 'mean', got {self.vision_pooling!r}: a vision tower of type "
                f"{self.vision_config.model_type!r} does not imply one, so state what global similarity reads from it"
            )
        require_temperatures(self)
        require_numbers(self, {"similarity_chunk_size": COUNT, "initializer_range": NOT_NEGATIVE})
        require_numbers(self, {"token_reduction": COUNT, "token_reduction_groups": COUNT})
        if self.token_reduction is not None:
            if self.similarity != "token-wise":
                raise ValueError("token_reduction needs similarity='token-wise': global similarity reads one token")
            if self.projection_dim % self.token_reduction_groups:
                raise ValueError(
                    f"projection_dim ({self.projection_dim}) is not a multiple of token_reduction_groups "
                    f"({self.token_reduction_groups})"
                )
        self.vision_hidden_size  # noqa: B018 (raises where it cannot be told)

    # the same question, asked of the same kinds of towers
    vision_hidden_size = R2D2Config.vision_hidden_size

    @property
    def vision_prefix_tokens(self) -> int:
        """How many of the image tower's first tokens are no patches ([CLS], registers, a distillation token)."""
        if self.vision_pooling == "mean":
            return 0
        distillation = 1 if self.vision_config.model_type == "deit" else 0
        return 1 + distillation + (getattr(self.vision_config, "num_register_tokens", None) or 0)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "WukongConfig":
        """Configuration of a variant of the paper: `wukong-{tower}-{variant}`.

        Towers `vit-b-32`, `vit-l-14`, `swin-l` and `swin-t`; variants `clip` (global similarity), `filip`
        (token-wise), `wukong` (token-wise on reduced tokens). Of Swin-T the authors published no configuration: its
        text tower, width and number of reduced tokens (those of ViT-B/32) are ours. `overrides` are WukongConfig
        arguments.

        Raises:
            ValueError: unknown name.
        """
        if name not in WUKONG_PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(WUKONG_PRESETS)}")
        return cls(**{**WUKONG_PRESETS[name], **overrides})


__all__ = ["WukongConfig", "WukongTextConfig"]
