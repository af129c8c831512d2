"""What a warm start takes from its towers beside their weights: how they saw pictures, and their tokenizer."""

import logging
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, PreTrainedConfig

from ..inference.loading import load_part
from ..model.configuration_r2d2 import R2D2Config, text_positions
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import tower_size

logger = logging.getLogger(__name__)

#: Towers on which R2D2's authors squash, as the paper's own models do, instead of CLIP's crop of the centre.
_SQUASHED = ("clip_vision_model", "chinese_clip_vision_model")
_FILES = ("preprocessor_config.json", "processor_config.json")
_COPIED = ("image_mean", "image_std", "resample", "do_rescale", "rescale_factor", "do_normalize")
#: Of normalised values: what different decoders and roundings make of one picture.
_ALIKE = 0.1


def warm_processor(
    clip: str | PathLike, tokenizer: Any, config: R2D2Config, image_size: int | None = None
) -> R2D2Processor:
    """The processor of a warm start: pictures as the image tower was trained on, texts by the text tower's tokenizer.

    Mean, deviation, resampling, scale, size and crop are those of the tower's own image processor; on CLIP's towers
    pictures are squashed, as the paper's models do. A tower without an image processor gets CLIP's mean and deviation
    at the size of its configuration, and a warning.

    Args:
        clip: folder or Hub name of the image tower.
        config: of the model that was made of the towers.
        image_size: side of the pictures, instead of the tower's own; position embeddings are interpolated.

    Raises:
        ValueError: a size that the tower's patches do not divide; an image processor that makes no pictures of one
            size (NaFlex); a tokenizer with more entries than the text tower has embeddings.
    """
    text = config.text_config
    if len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} entries, and the text tower {text.vocab_size:,} embeddings: they do "
            "not belong together"
        )
    source = _image_processor(clip)
    if source is None:
        logger.warning(
            "%s has no image processor (%s): its pictures get CLIP's mean and deviation, which may not be those it was "
            "trained with",
            clip,
            " or ".join(_FILES),
        )
    settings = _settings(source, config.vision_config, clip, image_size)
    length = min(config.max_text_length, text_positions(text))
    processor = R2D2Processor.build(tokenizer, max_length=length, **settings)
    if source is not None and image_size is None and config.vision_config.model_type not in _SQUASHED:
        _compare(source, processor, clip)
    return processor


def describe_images(processor: R2D2Processor, vision_config: PreTrainedConfig) -> str:
    """What the image tower sees, in one line: size, crop, mean, and how many tokens that makes."""
    images = processor.image_processor
    (width, height), shortest = tower_size(processor)
    line = f"pictures of {width}×{height} pixels"
    if shortest is not None:
        line += f" (shorter side {shortest}, centre cropped)"
    mean = "/".join(f"{value:.3g}" for value in images.image_mean)
    line += f", mean {mean}"
    patch = getattr(vision_config, "patch_size", None)
    if isinstance(patch, int) and getattr(vision_config, "hidden_size", None) and vision_config.model_type != "swin":
        line += f", {(width // patch) * (height // patch):,} patches each (fewer: --image-size)"
    return line


def _image_processor(clip: str | PathLike) -> Any | None:
    folder = Path(clip)
    if folder.exists() and not any((folder / name).is_file() for name in _FILES):
        return None
    try:
        return load_part(AutoImageProcessor, clip)
    except FileNotFoundError:  # a repository without one
        return None


def _settings(source: Any | None, vision: PreTrainedConfig, clip: str | PathLike, size: int | None) -> dict[str, Any]:
    """Arguments of `CLIPImageProcessor`."""
    _check_patches(vision, size)
    own = getattr(vision, "image_size", None) or 224
    if source is None:
        side = size or (own if isinstance(own, int) else own[0])
        return {"size": {"height": side, "width": side}}
    settings = {name: value for name in _COPIED if (value := getattr(source, name, None)) is not None}
    resized, cropped = _geometry(source, clip)
    if vision.model_type in _SQUASHED:
        resized, cropped = cropped or resized, None
    if size is not None:
        before = (cropped or resized)["height"]
        if cropped is not None:
            resized = {"shortest_edge": round(size * resized["shortest_edge"] / before)}
            cropped = {"height": size, "width": size}
        else:
            resized = {"height": size, "width": size}
    settings["size"] = resized
    if cropped is not None:
        settings |= {"do_center_crop": True, "crop_size": cropped}
    return settings


def _geometry(source: Any, clip: str | PathLike) -> tuple[dict[str, int], dict[str, int] | None]:
    """To which size the pictures are brought, and what is cropped out of that.

    Raises:
        ValueError: neither a squash nor a crop of the centre.
    """
    size, crop = dict(getattr(source, "size", None) or {}), dict(getattr(source, "crop_size", None) or {})
    crops = bool(getattr(source, "do_center_crop", False)) and crop.get("height")
    shortest = size.get("shortest_edge")
    if size.get("height") and size.get("width"):
        if not crops or crop == size:
            return {"height": size["height"], "width": size["width"]}, None
    elif shortest and (share := getattr(source, "crop_pct", None)):  # ConvNeXt's and ResNet's
        if shortest >= 384:
            return {"height": shortest, "width": shortest}, None
        return {"shortest_edge": int(shortest / share)}, {"height": shortest, "width": shortest}
    elif shortest and crops:
        return {"shortest_edge": shortest}, {"height": crop["height"], "width": crop["width"]}
    raise ValueError(
        f"{clip}: its {type(source).__name__} makes no pictures of one size (size {size}, crop {crop or None}), which "
        "an R2D2 reads: choose a tower that squashes or crops the centre"
    )


def _check_patches(vision: PreTrainedConfig, size: int | None) -> None:
    if size is None:
        return
    patch = getattr(vision, "patch_size", None)
    patch = patch if isinstance(patch, int) else None
    if size < 1 or (patch is not None and size % patch):
        near = (
            "" if patch is None else f"; near it are {max(size // patch, 1) * patch} and {(size // patch + 1) * patch}"
        )
        raise ValueError(f"--image-size {size} is no multiple of the tower's patches of {patch} pixels{near}")


def _compare(source: Any, processor: R2D2Processor, clip: str | PathLike) -> None:
    """One picture by both."""
    coarse = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((630, 490), Image.Resampling.BICUBIC)
    theirs = np.asarray(source(image, return_tensors="np")["pixel_values"][0])
    ours = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
    if theirs.shape != ours.shape or np.abs(theirs - ours).mean() > _ALIKE:
        logger.warning(
            "%s: its %s makes other pixels than a CLIPImageProcessor with its settings does; the tower may lose by it",
            clip,
            type(source).__name__,
        )


__all__ = ["describe_images", "warm_processor"]
