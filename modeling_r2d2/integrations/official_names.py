"""Names of the tensors in official R2D2 and PRD2 checkpoints: what each is called here, or why nothing reads it."""

import re

_TOP_LEVEL = {
    "temp": "temperature",
    "visual_encoder.": "vision_model.",
    "text_encoder.": "text_model.",
    "vision_proj.": "vision_projection.",
    "text_proj.": "text_projection.",
    "img_joint_proj.": "image_joint_projection.",
    "itm_head.": "text_image_match_head.",
    "itm_head_i.": "image_text_match_head.",
}

_JOINT_ENCODERS = {"text_joint_layer": "text_image_encoder", "img_joint_layer": "image_text_encoder"}

_JOINT_PARTS = {
    **{
        f"{theirs}.{part}": f"{ours}{name}"
        for theirs, ours in (("attention", "self_attn"), ("crossattention", "cross_attn"))
        for part, name in (
            ("self.query", ".q_proj"),
            ("self.key", ".k_proj"),
            ("self.value", ".v_proj"),
            ("output.dense", ".out_proj"),
            ("output.LayerNorm", "_layer_norm"),
        )
    },
    "intermediate.dense": "fc1",
    "output.dense": "fc2",
    "output.LayerNorm": "final_layer_norm",
}

_JOINT = re.compile(r"(text_joint_layer|img_joint_layer)\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")

_OUR_JOINT = re.compile(r"(text_image_encoder|image_text_encoder)\.layers\.(\d+)\.(.+)\.(weight|bias)")
_THEIR_ENCODERS = {ours: theirs for theirs, ours in _JOINT_ENCODERS.items()}
_THEIR_PARTS = {ours: theirs for theirs, ours in _JOINT_PARTS.items()}

# Named as in BERT; it belongs to the text-image encoder.
_HEAD = re.compile(r"(?:mlm_head|cls|text_joint_layer\.cls)\.(?:predictions\.)?(.+)")
_HEAD_PARTS = {
    "transform.dense.weight": "mlm_head.dense.weight",
    "transform.dense.bias": "mlm_head.dense.bias",
    "transform.LayerNorm.weight": "mlm_head.layer_norm.weight",
    "transform.LayerNorm.bias": "mlm_head.layer_norm.bias",
    "decoder.weight": "mlm_head.decoder.weight",
    "decoder.bias": "mlm_head.decoder.bias",
    "bias": "mlm_head.decoder.bias",
}

_UNUSED = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"[^.]*queue.*", "queue of earlier features: only training reads it"),
        (r"\w+_m(\..+)?", "momentum copy: only training reads it"),
        (r".*\.position_ids", "buffer that counts from 0: not stored any more"),
        (r"(text|img)_joint_layer\.embeddings\..+", "dead embedding table: the joint layers get states, not tokens"),
        (r"(text_encoder|text_joint_layer|img_joint_layer)\.pooler\..+", "pooler: the [CLS] state is read directly"),
        (r"visual_encoder\.post_layernorm\..+", "post_layernorm: features are the states before it"),
        (r"text_encoder\.cls\..+", "language-model head of the text tower alone: R2D2's MLM head is elsewhere"),
    )
)

#: Prefixes whose presence makes a checkpoint an R2D2; a PRD2 has none of them.
RANKER_PREFIXES = ("text_joint_layer.", "img_joint_layer.", "img_joint_proj.", "itm_head.", "itm_head_i.")


def unused_reason(name: str) -> str | None:
    """Why no model reads the official tensor `name`; None for the others."""
    return next((reason for pattern, reason in _UNUSED if pattern.fullmatch(name)), None)


def head_name(name: str) -> str | None:
    """Name in `R2D2ForPreTraining` if the official tensor `name` is a part of the MLM head, else None."""
    match = _HEAD.fullmatch(name)
    return _HEAD_PARTS.get(match[1]) if match else None


def model_name(name: str) -> str | None:
    """Name in `R2D2Model` of the official tensor `name`, None where the names say nothing about it."""
    if match := _JOINT.fullmatch(name):
        encoder, number, part, kind = match.groups()
        if part not in _JOINT_PARTS:
            return None
        return f"{_JOINT_ENCODERS[encoder]}.layers.{number}.{_JOINT_PARTS[part]}.{kind}"
    for theirs, ours in _TOP_LEVEL.items():
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    return None


def official_name(name: str) -> str:
    """The official name of a tensor of `R2D2Model`: the inverse of `model_name`."""
    if match := _OUR_JOINT.fullmatch(name):
        encoder, number, part, kind = match.groups()
        return f"{_THEIR_ENCODERS[encoder]}.encoder.layer.{number}.{_THEIR_PARTS[part]}.{kind}"
    for theirs, ours in _TOP_LEVEL.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise KeyError(name)
