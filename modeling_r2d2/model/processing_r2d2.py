"""R2D2Processor: images squashed to the model's size, texts truncated to the model's length.

This file travels to the Hub beside the weights, so it imports only numpy, PIL, transformers and flat siblings.
"""

import math
import os
from typing import Any

import numpy as np
from PIL import Image, ImageColor
from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import ProcessingKwargs
from transformers.utils import is_torchvision_available, logging

from .images_r2d2 import open_image, opening_of, upright_rgb

logger = logging.get_logger(__name__)


class R2D2ProcessorKwargs(ProcessingKwargs, total=False):
    """Defaults of a call. (As class variables of the processor only transformers 5.23 and newer reads them.)"""

    # transformers reads its defaults here, where a typed dictionary takes no values
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}  # type: ignore[misc]


def clip_image_processor(**settings: Any) -> BaseImageProcessor:
    """transformers' `CLIPImageProcessor`; without torchvision under its PIL name, which both backends load."""
    if is_torchvision_available():
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor(**settings)
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(**settings)


def _require_finite_scaling(image_processor: Any) -> None:
    """Pixels that are divided by 0 or NaN would make every embedding NaN.

    Raises:
        ValueError: names the setting of preprocessor_config.json.
    """
    bounds = {"image_mean": "", "image_std": " above 0", "rescale_factor": " other than 0"}
    for name, bound in bounds.items():
        value = getattr(image_processor, name, None)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            wrong = not isinstance(number, (int, float)) or not math.isfinite(number)
            if number is not None and (wrong or (bound and number == 0) or (name == "image_std" and number < 0)):
                raise ValueError(f"{name} of the image processor is {value}; it must be finite numbers{bound}")


def _require_background(image_processor: Any) -> None:
    """What transparent pictures are put on is a color.

    Raises:
        ValueError: names the setting of preprocessor_config.json.
    """
    value = getattr(image_processor, "background", None)
    try:
        channels = ImageColor.getrgb(value) if isinstance(value, str) else (0, 0, 0) if value is None else tuple(value)
    except (TypeError, ValueError):
        channels = ()
    if len(channels) < 3 or not all(isinstance(each, int) and 0 <= each <= 255 for each in channels):
        raise ValueError(f"background of the image processor is {value!r}, no color: use a name, #rrggbb or [r, g, b]")


class R2D2Processor(ProcessorMixin):
    """A `CLIPImageProcessor`, which squashes (bicubic, no crop) unless it was made otherwise, and a `BertTokenizer`.

    Texts are padded to the longest of the batch (with `attend_padding` to the full length) and truncated to the
    tokenizer's `model_max_length` (64 in the official models); the first truncation is reported by a warning. PIL
    images of any mode are turned upright as their EXIF data say and converted to RGB by PIL. Arrays and tensors of
    floats are taken as 0..1 if no value is outside it, else as 0..255; of 16-bit integers 65535 is white.

    Args:
        image_processor: of the library, e.g. from `R2D2Processor.build`; or another one that squashes, or crops the
            center.
        tokenizer: a BERT tokenizer, or the one of another text tower.
        attend_padding: every text has `model_max_length` tokens, and padding counts as the others do: its
            `attention_mask` is 1 throughout. For text towers that read their padding (SigLIP).
    """

    image_processor: Any  # of either backend, which have their settings as attributes
    tokenizer: PreTrainedTokenizerBase
    valid_processor_kwargs = R2D2ProcessorKwargs
    _auto_class = "AutoProcessor"

    def __init__(self, image_processor=None, tokenizer=None, attend_padding: bool = False, **kwargs):
        super().__init__(image_processor, tokenizer)
        self.attend_padding = attend_padding
        _require_finite_scaling(image_processor)
        _require_background(image_processor)

    @classmethod
    def build(
        cls, tokenizer: PreTrainedTokenizerBase, image_size: int = 224, max_length: int = 64, **image_kwargs: Any
    ) -> "R2D2Processor":
        """A processor for images of `image_size` pixels and texts of at most `max_length` tokens.

        `image_kwargs` go to `CLIPImageProcessor` (other `image_mean`, `crop_size`, …). `exif_transpose=False` among
        them takes pictures as they are stored, as the authors did, and not upright; `background="white"` puts
        transparent ones on white instead of dropping their alpha. Training, index, search, match, evaluation and
        pipelines then all do.
        """
        tokenizer.model_max_length = max_length
        squash = {"size": {"height": image_size, "width": image_size}, "do_center_crop": False}
        return cls(clip_image_processor(**{**squash, **image_kwargs}), tokenizer)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """Encode images, texts or both.

        Args:
            images: one or several: PIL images, files (bytes too), arrays (H, W) or (H, W, 3) or (3, H, W) of 0..255
                or 0..1, also a batch of them. Addresses and base64 are read as transformers reads them.
            text: one or several.

        Returns:
            `pixel_values` (I, 3, S, S) float32, `input_ids`, `token_type_ids` and `attention_mask` (T, L).

        Raises:
            ValueError: neither images nor text, or an empty list of either; pixels beyond 0..255, or not finite.
        """
        for name, value in (("images", images), ("text", text)):
            if isinstance(value, (list, tuple)) and not value:
                raise ValueError(f"{name} is an empty list")
        if not isinstance(text, (str, list, type(None))) and hasattr(text, "__iter__"):
            text = list(text)  # a tuple, an array or a column of a data set; transformers takes lists alone
        if hasattr(images, "__next__"):  # a generator; transformers takes lists alone
            images = list(images)
        if images is not None:
            images = _eight_bit(images, opening_of(self), self._rescales(kwargs))
        if text is not None:
            kwargs = self._text_options(kwargs)
        encoded = super().__call__(images=images, text=text, **kwargs)
        if text is not None:
            self._warn_if_truncated(text, kwargs)
            if self.attend_padding:
                encoded["attention_mask"] = _all_ones(encoded["input_ids"])
        return encoded

    def _text_options(self, kwargs: dict) -> dict:
        """Options of a call for the tokenizer too: some make no attention mask unless they are asked to."""
        nested = kwargs.get("text_kwargs") or {}
        if not self.attend_padding:
            return kwargs if "return_attention_mask" in nested else {"return_attention_mask": True, **kwargs}
        length = self.tokenizer.model_max_length
        fixed = {"padding": "max_length", "truncation": True, "max_length": length, "return_attention_mask": True}
        return {**kwargs, **fixed, "text_kwargs": {name: nested[name] for name in nested if name not in fixed}}

    def _rescales(self, kwargs: dict) -> bool:
        """Whether this call divides pixels by 255, so that they must not be within 0..1 already."""
        options = {**kwargs, **(kwargs.get("images_kwargs") or {})}
        chosen = {
            name: options.get(name, getattr(self.image_processor, name, None))
            for name in ("do_rescale", "rescale_factor")
        }
        return bool(chosen["do_rescale"]) and math.isclose(chosen["rescale_factor"] or 0, 1 / 255, rel_tol=1e-3)

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        """Captions of generated tokens (B, L), without the spaces that a BERT tokenizer puts between Chinese
        characters (those between two Latin words or numbers stay); `pipeline("image-text-to-text")` calls this."""
        captions = []
        for text in self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens):
            words = text.split()
            joined = words[:1]
            for before, word in zip(words, words[1:], strict=False):
                joined.append(f" {word}" if before[-1].isascii() and word[0].isascii() else word)
            captions.append("".join(joined))
        return captions

    def _warn_if_truncated(self, text, kwargs: dict):
        options = {**kwargs, **kwargs.get("text_kwargs", {})}
        if not options.get("truncation", True):
            return
        limit = options.get("max_length") or self.tokenizer.model_max_length
        texts = [text] if isinstance(text, str) else text
        # A token covers at least one byte, so only longer texts can have been cut.
        long_texts = [t for t in texts if isinstance(t, str) and len(t.encode("utf-8", "replace")) > limit - 2]
        if long_texts and max(map(len, self.tokenizer(long_texts, truncation=False, verbose=False).input_ids)) > limit:
            logger.warning_once(f"texts longer than {limit} tokens are truncated (this is shown once)")


def _all_ones(input_ids: Any) -> Any:
    """The attention mask of texts (T, L), as a tensor, an array or lists, all of whose tokens are read."""
    if isinstance(input_ids, list):
        return [_all_ones(ids) for ids in input_ids]
    return 1 if isinstance(input_ids, int) else input_ids * 0 + 1


def _eight_bit(images, opening: dict[str, Any], rescales: bool):
    """Images as the image processor expects them: upright RGB, or arrays of 0..255 with channels."""
    if isinstance(images, (bytes, os.PathLike)) or (isinstance(images, str) and os.path.exists(images)):
        return open_image(images, **opening)
    if isinstance(images, Image.Image):
        return upright_rgb(images, **opening)
    if isinstance(images, (list, tuple)):
        return type(images)(_eight_bit(image, opening, rescales) for image in images)
    if getattr(images, "ndim", None) == 2:  # grey
        images = np.stack([images] * 3, axis=-1) if isinstance(images, np.ndarray) else images.expand(3, -1, -1)
    if rescales and hasattr(images, "dtype") and str(images.dtype).removeprefix("torch.") != "uint8":
        return _array_to_eight_bit(images)
    return images


def _array_to_eight_bit(values) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, on any device and of types that numpy lacks
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "biuf" or not values.size:
        return values
    low, high = float(values.min()), float(values.max())  # NaN where there is one
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("the pixels hold values that are not finite (NaN or infinite)")
    white = 65535 if values.dtype == np.uint16 else 1 if values.dtype.kind in "bf" and high <= 1 else 255
    if low < 0 or high > white:
        raise ValueError(
            f"pixels of {values.dtype} are 0..255{' or 0..1' if values.dtype.kind == 'f' else ''}, and these lie in "
            f"{low:g}..{high:g}; pixels that are normalised already go to the model itself"
        )
    return np.rint(values * np.float32(255 / white)).astype(np.uint8)


__all__ = ["R2D2Processor"]
