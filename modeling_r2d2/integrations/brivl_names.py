"""Names of the tensors in BriVL's checkpoints: what each is called here, or why nothing reads it."""

import re
from collections.abc import Iterable

#: Parts of an EfficientNet's block as timm calls them, without and with an expansion.
_BLOCKS = {
    "se.conv_reduce": "squeeze_excite.reduce",
    "se.conv_expand": "squeeze_excite.expand",
    "conv_dw": "depthwise_conv.depthwise_conv",
}
_FIRST_STAGE = {
    **_BLOCKS,
    "bn1": "depthwise_conv.depthwise_norm",
    "conv_pw": "projection.project_conv",
    "bn2": "projection.project_bn",
}
_OTHER_STAGES = {
    **_BLOCKS,
    "conv_pw": "expansion.expand_conv",
    "bn1": "expansion.expand_bn",
    "bn2": "depthwise_conv.depthwise_norm",
    "conv_pwl": "projection.project_conv",
    "bn3": "projection.project_bn",
}
_ENDS = {
    "conv_stem": "embeddings.convolution",
    "bn1": "embeddings.batchnorm",
    "conv_head": "encoder.top_conv",
    "bn2": "encoder.top_bn",
}
_LAYER = {
    "self_attn.out_proj": "self_attn.out_proj",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm",
}
_STACKED = re.compile(r"self_attn\.in_proj_(weight|bias)")
_UNUSED = (
    (re.compile(r"imgencoder\.backbone\.classifier\..+"), "classifier of ImageNet: BriVL reads the map before it"),
    (re.compile(r"textencoder\.backbone\.bert\.pooler\..+"), "BERT's pooler: BriVL reads the last hidden states"),
    (re.compile(r".+\.position_ids"), "buffer that counts from 0: not stored any more"),
)
_MOMENTUM = re.compile(r"(img|text)encoder_mom\.")
#: The 1×1 convolution, whose kernel is the matrix of a linear layer.
CONVOLUTION = re.compile(r"imgencoder\.learnable\.max_pool\.0\.weight")


def of_momentum(name: str) -> str | None:
    """What a tensor of the momentum copies is a copy of; None for the others."""
    return _MOMENTUM.sub(r"\1encoder.", name) if _MOMENTUM.match(name) else None


class BriVLNames:
    """The names of one checkpoint, which tell how many blocks each stage of its EfficientNet has."""

    def __init__(self, names: Iterable[str]):
        found = (re.match(r"imgencoder\.backbone\.blocks\.(\d+)\.(\d+)\.", name) for name in names)
        last: dict[int, int] = {}
        for stage, block in (map(int, match.groups()) for match in found if match):
            last[stage] = max(last.get(stage, 0), block)
        #: blocks of every stage
        self.repeats = [last.get(stage, -1) + 1 for stage in range(max(last, default=-1) + 1)]

    def of(self, name: str) -> tuple[str, ...]:
        """Names in `BriVLModel` of a tensor: three where it holds queries, keys and values; none where the names say
        nothing about it."""
        tower, _, rest = name.partition(".")
        if tower == "imgencoder" and rest.startswith("backbone."):
            return self._efficientnet(rest.removeprefix("backbone."))
        if tower == "textencoder" and rest.startswith("backbone.bert."):
            return (f"text_model.bert.{rest.removeprefix('backbone.bert.')}",)
        part = {"imgencoder": ("vision", "img"), "textencoder": ("text", "text")}.get(tower)
        if part is None:
            return ()
        ours, theirs = part
        if match := re.fullmatch(rf"learnable\.{theirs}Att\.layers\.(\d+)\.(.+)", rest):
            layer, inner = f"{ours}_model.transformer.layers.{match[1]}.", match[2]
            if stacked := _STACKED.fullmatch(inner):
                return tuple(f"{layer}self_attn.{each}_proj.{stacked[1]}" for each in "qkv")
            return _renamed(layer, inner, _LAYER)
        if match := re.fullmatch(rf"learnable\.{theirs}FC\.fc([12])\.(weight|bias)", rest):
            return (f"{ours}_projection.{2 * int(match[1]) - 2}.{match[2]}",)
        if match := re.fullmatch(r"learnable\.max_pool\.0\.(weight|bias)", rest):
            return (f"vision_model.region_projection.{match[1]}",) if ours == "vision" else ()
        return ()

    def _efficientnet(self, name: str) -> tuple[str, ...]:
        prefix = "vision_model.backbone."
        if match := re.fullmatch(r"blocks\.(\d+)\.(\d+)\.(.+)", name):
            stage, block = int(match[1]), int(match[2])
            number = sum(self.repeats[:stage]) + block
            return _renamed(f"{prefix}encoder.blocks.{number}.", match[3], _OTHER_STAGES if stage else _FIRST_STAGE)
        return _renamed(prefix, name, _ENDS)


def _renamed(prefix: str, name: str, names: dict[str, str]) -> tuple[str, ...]:
    module, _, kind = name.rpartition(".")
    return (f"{prefix}{names[module]}.{kind}",) if module in names else ()


def unused_reason(name: str) -> str | None:
    """Why no model reads a tensor of a checkpoint (of a momentum copy: of what it is a copy of); None for the
    others."""
    return next((reason for pattern, reason in _UNUSED if pattern.fullmatch(name)), None)
