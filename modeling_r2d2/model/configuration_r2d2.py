"""Configuration of R2D2 and PRD2 (arXiv 2205.03860).

This file travels to the Hub beside the weights, so it imports only torch, transformers and flat siblings.
"""

import math
from dataclasses import field
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, BertConfig, CLIPVisionConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .presets_r2d2 import PRESETS
from .ranges_r2d2 import COUNT, NOT_NEGATIVE, POSITIVE, SEVERAL, SHARE, require_number, require_numbers

#: The image tower of the official models is the library's CLIP ViT, under its own model type.
R2D2VisionConfig = CLIPVisionConfig
"""transformers' `CLIPVisionConfig` (`hidden_size`, `num_hidden_layers`, `num_attention_heads`, `intermediate_size`,
`image_size`, `patch_size`, …): the default `vision_config`, whose `model_type` is `"clip_vision_model"`."""

#: What pre-ranking may read from a tower: its first token, the mean of its tokens, its last token, or what the tower's
#: own pooler makes of them (CLIP's end token and last norm, SigLIP's attention head).
POOLINGS = ("cls", "mean", "last", "pooler")

#: What pre-ranking reads of an image tower that is not told otherwise. Other towers must state it.
IMPLIED_VISION_POOLING = {
    "clip_vision_model": "cls",
    "chinese_clip_vision_model": "cls",
    "beit": "cls",
    "brivl_vision_model": "pooler",
    "deit": "cls",
    "dinov2": "cls",
    "dinov2_with_registers": "cls",
    "dinov3_vit": "cls",
    "vit": "cls",
    "convnext": "mean",
    "convnextv2": "mean",
    "dinov3_convnext": "mean",
    "efficientnet": "mean",
    "mobilenet_v2": "mean",
    "regnet": "mean",
    "resnet": "mean",
    "siglip_vision_model": "mean",
    "swin": "mean",
    "swinv2": "mean",
}


#: The text towers that there are, and what pre-ranking reads of them where nothing else is said. A CLIP's and a
#: SigLIP's own pooler is what they were trained by: the state of the end token, and the projected state of the last.
IMPLIED_TEXT_POOLING = {
    "bert": "cls",
    "brivl_text_model": "pooler",
    "chinese_clip_text_model": "cls",
    "altclip_text_model": "cls",
    "xlm-roberta": "cls",
    "clip_text_model": "pooler",
    "siglip_text_model": "pooler",
}

#: Text towers whose positions begin behind that of padding, as fairseq counts them.
_SHIFTED_POSITIONS = ("xlm-roberta", "altclip_text_model")
#: The library has a pooler of it that no checkpoint holds and Chinese-CLIP itself does not read.
_WITHOUT_POOLER = ("chinese_clip_text_model",)


@strict
class R2D2TextConfig(BertConfig):
    """Text tower: BERT with the 21,128-token Chinese vocabulary (hfl/chinese-roberta-wwm-ext by default).

    `model_type` stays `"bert"`, so a saved text tower loads as a plain `BertModel`.
    """

    base_config_key = "text_config"

    vocab_size: int = 21128


@strict
class R2D2CrossEncoderConfig(PreTrainedConfig):
    """Both cross encoders of the ranker: post-LN layers of self-attention, cross-attention and MLP.

    Attributes:
        hidden_size: width D of their states; image states of another width are projected to it.
        num_hidden_layers: of each encoder.
        num_attention_heads: as in BERT.
        intermediate_size: as in BERT.
        hidden_act: as in BERT.
        hidden_dropout_prob: as in BERT.
        attention_probs_dropout_prob: as in BERT.
        layer_norm_eps: as in BERT.
        initializer_range: standard deviation of their random weights.

    Raises:
        ValueError: heads that do not divide the width, or no layer.
    """

    model_type = "r2d2_cross_encoder"
    base_config_key = "cross_encoder_config"

    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Heads must divide the width, and there is at least one layer.

        Raises:
            ValueError: they do not; names the values.
        """
        sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), COUNT)
        shares = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), SHARE)
        others = {"layer_norm_eps": NOT_NEGATIVE, "initializer_range": NOT_NEGATIVE}
        part = self.base_config_key
        require_numbers(self, {**sizes, **shares, **others}, f"{part}: ")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{part}: hidden_size ({self.hidden_size}) is not a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.num_hidden_layers < 1:
            raise ValueError(f"{part}: num_hidden_layers must be at least 1 (cross_encoder_config None: no ranker)")


@strict
class R2D2Config(PreTrainedConfig):
    """R2D2: two towers for pre-ranking and, unless `cross_encoder_config` is None (PRD2), a ranker.

    Attributes:
        vision_config: CLIP ViT by default, or any transformers vision model by its `model_type`
            (`{"model_type": "resnet", ...}`).
        text_config: the text tower: BERT by default, or one of `IMPLIED_TEXT_POOLING` by its `model_type`
            (`{"model_type": "clip_text_model", ...}`).
        cross_encoder_config: both cross encoders; an explicit None means pre-ranking only (PRD2).
        projection_dim: width of the pre-ranking embeddings.
        temperature_init_value: initial temperature; logits = cosine / temperature.
        temperature_min: the learned temperature stays above.
        temperature_max: the learned temperature stays below.
        vision_pooling: what pre-ranking reads from the image tower: `"cls"`, its first token, `"mean"`, the mean of
            its tokens, `"last"`, its last token, or `"pooler"`, what its own pooler makes of them (the last norm of a
            CLIP, the attention head of a SigLIP). None: `"cls"` or `"mean"` as the tower's type implies; a type that
            implies none raises `ValueError`. The ranker reads the last hidden states, whatever the pooling.
        text_pooling: the same of the text tower; of its real tokens alone. None: implied by the tower's type.
        projection: what brings the pooled states to `projection_dim`: `"affine"`, W·x + b, `"linear"`, W·x (CLIP),
            `"mlp"`, W₂·relu(W₁·x + b₁) + b₂ (BriVL), or `"none"` (SigLIP).
        logit_bias: what is added to cosine / temperature in the logits (SigLIP); no loss here depends on it, nor does
            any ranking.
        max_text_length: tokens a processor of this model keeps (64 in the official models).
        attend_padding: whether every text is padded to `max_text_length` tokens, all of which the tower reads (SigLIP).
        gcpr_weight: weight of GCPR, or of TgD, which replaces it, in pre-training.
        fgr_weight: of FGR.
        mlm_weight: of MLM.
        fgd_weight: of FgD.
        fgd_prototypes: K, the prototypes of each head that FgD compares by; 0: no heads, and no FgD
            (`R2D2ForPreTraining.add_feature_heads` sets it).
        fgd_hidden_size: width of the heads' hidden layers; None: 4 times that of their tower, at most 2048.
        fgd_bottleneck_size: d, width of what is compared with the prototypes; None: that of the narrower tower, at most
            256.
        rank_masked_texts: enhanced training (ET): the text-image encoder ranks masked texts, so that one pass
            serves FGR and MLM. All pairs are masked alike (ours): were only the true ones, [MASK] would betray
            the label. False: ranking on unmasked texts, MLM by a pass of its own.
        two_stage_score: `"fused"`, cosine / temperature + the log-odds of the match probability (ours: the posterior
            that hard negatives drawn by pre-ranking lead to), or `"published"`, cosine + match probability, as the
            authors evaluate; their converted checkpoints have the latter.
    """

    model_type = "r2d2"
    _auto_class = "AutoConfig"  # saved folders name their own code
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(R2D2TextConfig),
        "cross_encoder_config": SubConfigSpec(R2D2CrossEncoderConfig, optional=True),
    }

    # what Trainer need not carry through an evaluation: only the embeddings are left
    keys_to_ignore_at_inference = [
        "logits_per_image",
        "logits_per_text",
        "text_model_output",
        "vision_model_output",
        "loss_gcpr",
        "loss_tgd",
        "loss_fgr",
        "loss_mlm",
        "loss_fgd",
        "ranking_accuracy",
        "temperature",
        "text_cross_output",
        "image_cross_output",
    ]

    if TYPE_CHECKING:  # what a dict, or None, has become once the configuration is made
        vision_config: PreTrainedConfig
        text_config: Any  # R2D2TextConfig, or that of another text tower
        cross_encoder_config: R2D2CrossEncoderConfig | None

        def __init__(self, **fields: Any) -> None: ...
    else:
        vision_config: dict | PreTrainedConfig | None = None
        text_config: dict | PreTrainedConfig | None = None
        cross_encoder_config: dict | PreTrainedConfig | None = field(default_factory=dict)
    projection_dim: int = 768
    temperature_init_value: float = 0.07
    temperature_min: float = 0.001
    temperature_max: float = 0.5
    vision_pooling: str | None = None
    text_pooling: str | None = None
    projection: Literal["affine", "linear", "mlp", "none"] = "affine"
    logit_bias: float = 0.0
    max_text_length: int = 64
    attend_padding: bool = False
    gcpr_weight: float = 1.0
    fgr_weight: float = 1.0
    mlm_weight: float = 1.0
    fgd_weight: float = 1.0
    fgd_prototypes: int = 0
    fgd_hidden_size: int | None = None
    fgd_bottleneck_size: int | None = None
    rank_masked_texts: bool = True
    two_stage_score: Literal["fused", "published"] = "fused"
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.vision_config is None:
            self.vision_config = {"patch_size": 16}  # the official ViT-B/16, not the library's default of 32
        if isinstance(self.text_config, dict) and self.text_config.get("model_type", "bert") != "bert":
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)
        if self.vision_pooling is None:
            self.vision_pooling = IMPLIED_VISION_POOLING.get(self.vision_config.model_type)
        if self.text_pooling is None:
            self.text_pooling = IMPLIED_TEXT_POOLING.get(self.text_config.model_type)

    def validate_architecture(self):
        """What the parts must agree on.

        Raises:
            ValueError: they do not; names the values.
        """
        if self.text_config.model_type not in IMPLIED_TEXT_POOLING:
            raise ValueError(
                f"text_config of type {self.text_config.model_type!r}: a text tower is one of "
                f"{', '.join(IMPLIED_TEXT_POOLING)}"
            )
        poolings = {"vision_pooling": self.vision_pooling, "text_pooling": self.text_pooling}
        for (name, value), kind in zip(poolings.items(), (self.vision_config, self.text_config), strict=True):
            if value not in POOLINGS:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, POOLINGS))}, got {value!r}: a tower of type "
                    f"{kind.model_type!r} does not imply one, so state what pre-ranking reads from it"
                )
        if self.text_pooling == "pooler" and self.text_config.model_type in _WITHOUT_POOLER:
            raise ValueError(f"text_pooling: a {self.text_config.model_type!r} has no pooler; read its 'cls'")
        require_temperatures(self)
        require_number("logit_bias", self.logit_bias)
        if self.projection == "none":
            widths = {"vision_config": self.vision_hidden_size, "text_config": self.pooled_text_size}
            for name, width in widths.items():
                if width != self.projection_dim:
                    raise ValueError(
                        f"projection 'none': {name} is {width} wide, and projection_dim is {self.projection_dim}; "
                        "towers of other widths need a projection, 'affine' or 'linear'"
                    )
        require_numbers(self, dict.fromkeys(("gcpr_weight", "fgr_weight", "mlm_weight", "fgd_weight"), NOT_NEGATIVE))
        require_number("initializer_range", self.initializer_range, **NOT_NEGATIVE)
        if self.fgd_prototypes != 0:
            require_number("fgd_prototypes", self.fgd_prototypes, **SEVERAL)
        require_numbers(self, dict.fromkeys(("fgd_hidden_size", "fgd_bottleneck_size"), COUNT))
        cross = self.cross_encoder_config
        if cross is not None and cross.hidden_size != self.text_hidden_size:
            raise ValueError(
                f"cross_encoder_config.hidden_size ({cross.hidden_size}) must equal text_config.hidden_size "
                f"({self.text_hidden_size}): text states enter the text-image encoder unprojected"
            )
        self.vision_hidden_size  # noqa: B018 (raises where it cannot be told)

    @property
    def vision_hidden_size(self: PreTrainedConfig) -> int:
        """Width of the image tower's tokens, of ViT-like towers and of those that list a width per stage."""
        vision = self.vision_config
        for name in ("hidden_size", "hidden_dim"):
            if isinstance(width := getattr(vision, name, None), int):
                return width
        for name in ("hidden_sizes", "out_channels"):
            if widths := getattr(vision, name, None):
                return widths[-1]
        raise ValueError(
            f"vision_config of type {vision.model_type!r} names no hidden_size or hidden_sizes; "
            "set vision_config.hidden_size to the width of its last hidden state"
        )

    @property
    def text_hidden_size(self) -> int:
        """Width of the text tower's last hidden states; those of AltCLIP's are projected already."""
        return getattr(self.text_config, "project_dim", None) or self.text_config.hidden_size

    @property
    def pooled_text_size(self) -> int:
        """Width of what pre-ranking reads from the text tower; SigLIP's own head may change it."""
        head = getattr(self.text_config, "projection_size", None) if self.text_pooling == "pooler" else None
        return head or self.text_hidden_size

    @property
    def has_class_token(self) -> bool:
        """Whether the image tower's first token stands for the whole image; where none does, the ranker puts the mean
        of all in front of them."""
        own = IMPLIED_VISION_POOLING.get(self.vision_config.model_type)
        return self.vision_pooling == "cls" or (self.vision_pooling == "pooler" and own == "cls")

    def add_ranker(self, num_hidden_layers: int | None = None):
        """Describe a ranker too where there is none: `ranker_beside` these towers.

        Raises:
            ValueError: there is one.
        """
        if self.cross_encoder_config is not None:
            raise ValueError("this configuration has a ranker (cross_encoder_config) already")
        sizes = ranker_beside(self.text_config, self.text_hidden_size)
        if num_hidden_layers is not None:
            sizes["num_hidden_layers"] = num_hidden_layers
        self.cross_encoder_config = R2D2CrossEncoderConfig(**sizes)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "R2D2Config":
        """Configuration of an official size (arXiv 2205.03860): `r2d2-vit-b-16`, `r2d2-vit-l-14`,
        `r2d2-vit-l-14-336`, `prd2-vit-b-16`, `prd2-vit-l-14`. `overrides` are R2D2Config arguments.

        Raises:
            ValueError: unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; there are {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})


def ranker_beside(text_config: PreTrainedConfig, width: int) -> dict[str, Any]:
    """Width, heads, intermediate width and dropout of cross encoders beside a text tower whose states are `width` wide:
    the tower's own, or as many heads and as many times the width as fit; dropout as BERT's where it names none. Random
    weights spread so that a sum over `width` of them is as large as BERT's, 0.02 at 768: in a narrow ranker 0.02 leaves
    next to nothing of what it reads, and it learns late."""
    dropout = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return {
        "hidden_size": width,
        "num_attention_heads": math.gcd(width, text_config.num_attention_heads),
        "intermediate_size": text_config.intermediate_size * width // text_config.hidden_size,
        "initializer_range": 0.02 * math.sqrt(768 / width),
        **{name: getattr(text_config, name) for name in dropout if hasattr(text_config, name)},
    }


def text_positions(text_config: PreTrainedConfig) -> int:
    """How many tokens a text tower takes: as many as it has positions for, or as it pads all texts to (BriVL)."""
    if padded := getattr(text_config, "padded_length", None):
        return padded
    shifted = text_config.model_type in _SHIFTED_POSITIONS
    return text_config.max_position_embeddings - ((text_config.pad_token_id or 0) + 1 if shifted else 0)


def require_temperatures(config: PreTrainedConfig) -> None:
    """The learned temperature begins within its bounds, and has a meaning; sizes are sizes.

    Raises:
        ValueError: names the values.
    """
    require_numbers(config, {"projection_dim": COUNT, "max_text_length": COUNT})
    names = ("temperature_min", "temperature_init_value", "temperature_max")
    require_numbers(config, dict.fromkeys(names, POSITIVE))
    low, value, high = (getattr(config, name) for name in names)
    if not low <= value <= high:
        raise ValueError(
            f"temperature_init_value ({value}) must lie within [temperature_min, temperature_max] = [{low}, {high}]"
        )


__all__ = [
    "R2D2Config",
    "R2D2CrossEncoderConfig",
    "R2D2TextConfig",
    "R2D2VisionConfig",
    "ranker_beside",
    "text_positions",
]
