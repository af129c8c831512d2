"""Names of the tensors in the Wukong checkpoints of the authors' PyTorch code: what each is called here, or why nothing
reads it."""

import re

_BLOCK = {
    "attn.in_proj_weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "attn.in_proj_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    **{
        f"{theirs}.{kind}": (f"{ours}.{kind}",)
        for theirs, ours in (
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_1", "layer_norm1"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        )
        for kind in ("weight", "bias")
    },
}
_SWIN_BLOCK = {
    "attn.relative_position_bias_table": ("attention.relative_position_bias.relative_position_bias_table",),
    **{f"attn.qkv.{kind}": tuple(f"attention.{part}_proj.{kind}" for part in "qkv") for kind in ("weight", "bias")},
    **{
        f"{theirs}.{kind}": (f"{ours}.{kind}",)
        for theirs, ours in (
            ("attn.proj", "attention.o_proj"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
        for kind in ("weight", "bias")
    },
}
_VIT = {
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_layernorm.weight",
    "ln_post.bias": "vision_layernorm.bias",
    "proj": "vision_projection.weight",
}
_SWIN = {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in (
        ("patch_embed.proj", "vision_model.embeddings.patch_embeddings.projection"),
        ("patch_embed.norm", "vision_model.embeddings.norm"),
        ("norm", "vision_model.layernorm"),
        ("head", "vision_projection"),
    )
    for kind in ("weight", "bias")
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
}
_REDUCTION = {
    name: f"token_reduction.{name}"
    for name in ("norm.weight", "norm.bias", "attention_maps.0.weight", "attention_maps.1.weight", "feat_conv.weight")
}
#: Stored transposed: the authors multiply by them from the right.
TRANSPOSED = re.compile(r"(visual\.proj|(transformer\.)?text_projection)")
TEMPERATURE = re.compile(r"(loss\.)?logit_scale")
_UNUSED = (
    (re.compile(r"visual\.layers\..+\.attn_mask"), "mask of shifted windows: made anew for each image size"),
    (re.compile(r"visual\.layers\..+\.attn\.relative_position_index"), "index of relative positions: made anew"),
    (re.compile(r".+\.position_ids"), "buffer that counts from 0: not stored any more"),
)


def model_names(name: str) -> tuple[str, ...]:
    """Names in `WukongModel` of the tensor `name` of a checkpoint: three where it holds queries, keys and values;
    none where the names say nothing about it."""
    if match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name):
        tower, number, part = match.groups()
        prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}."
        return tuple(prefix + target for target in _BLOCK.get(part, ()))
    if match := re.fullmatch(r"(?:visual\.)?(?:token_learner|token_reduction)\.(.+)", name):
        return _one(_REDUCTION.get(match[1]))
    if match := re.fullmatch(r"visual\.layers\.(\d+)\.blocks\.(\d+)\.(.+)", name):
        stage, number, part = match.groups()
        prefix = f"vision_model.encoder.layers.{stage}.blocks.{number}."
        return tuple(prefix + target for target in _SWIN_BLOCK.get(part, ()))
    if match := re.fullmatch(r"visual\.layers\.(\d+)\.downsample\.(reduction\.weight|norm\.weight|norm\.bias)", name):
        return (f"vision_model.encoder.layers.{match[1]}.downsample.{match[2]}",)
    if name.startswith("visual."):
        part = name.removeprefix("visual.")
        return _one(_VIT.get(part) or _SWIN.get(part))
    return _one(_TEXT.get(name.removeprefix("transformer.")))


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def unused_reason(name: str) -> str | None:
    """Why no model reads the tensor `name` of a checkpoint; None for the others."""
    return next((reason for pattern, reason in _UNUSED if pattern.fullmatch(name)), None)
