"""Where the ranker looks: cross-attention of the text-image encoder, word by word, over the picture."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inference.encoding import evaluating
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker
from ..processing.files.images import open_image, opening_of


@dataclass(frozen=True)
class HeatMap:
    """Where a word is seen.

    Args:
        weights: (h, w) attention of a word, mean over heads and layers, over the patches; they sum to 1 (less what
            [CLS] takes).
        spans: the word's characters in the text.
        image: what was looked at.
    """

    weights: Tensor
    word: str
    spans: list[tuple[int, int]]
    image: Image.Image

    def overlay(self, opacity: float = 0.55) -> Image.Image:
        """The picture with the map over it, red where the attention is highest."""
        scaled = self.weights / self.weights.max().clamp(min=1e-12)
        heat = Image.fromarray((scaled.numpy() * 255).astype(np.uint8)).resize(
            self.image.size, Image.Resampling.BICUBIC
        )
        red = Image.new("RGB", self.image.size, "#d7301f")
        return Image.composite(red, self.image, heat.point(lambda value: int(value * opacity)))


def heat_map(
    model: R2D2Model,
    processor: R2D2Processor,
    image,
    text: str,
    word: str | None = None,
    layers: list[int] | None = None,
) -> HeatMap:
    """Attention of a word of the text to the regions of a picture.

    Args:
        image: a path or PIL picture.
        word: a part of the text, every place where it stands; None: the whole text.
        layers: of the text-image encoder; default all.

    Returns:
        the mean over heads, layers and the word's tokens, without what goes to the image tower's [CLS].

    Raises:
        ValueError: a model without a ranker, a tokenizer that does not tell where its tokens stand, a word that is not
            in the text (or beyond its 64 tokens), a tower whose tokens form no rectangle.
    """
    require_ranker(model.config)
    pil_image = open_image(image, **opening_of(processor))
    if not processor.tokenizer.is_fast:
        raise ValueError(
            f"a {type(processor.tokenizer).__name__} does not tell where in a text its tokens stand: there is no heat "
            "map of its words"
        )
    spans = _spans(text, word)
    encoded = processor(images=[pil_image], text=[text], return_offsets_mapping=True, return_tensors="pt")
    offsets = encoded.pop("offset_mapping")[0].tolist()
    tokens = [
        place
        for place, (start, end) in enumerate(offsets)
        if end > start and any(start < stop and end > begin for begin, stop in spans)
    ]
    if not tokens:
        raise ValueError(f"{word or text!r} lies beyond the {len(offsets)} tokens that the model reads of the text")
    pixel_values = encoded["pixel_values"].to(model.device, model.dtype)
    ids, mask = encoded["input_ids"].to(model.device), encoded["attention_mask"].to(model.device)
    with evaluating(model):
        states = model.get_image_features(pixel_values).last_hidden_state
        texts = model.get_text_features(ids, mask).last_hidden_state
        weights = _cross_attention(model, texts, states, layers)[tokens].mean(dim=0)
    return HeatMap(_grid(model, weights, pixel_values.shape[-2:]), word or text, spans, pil_image)


def _cross_attention(model: R2D2Model, texts: Tensor, states: Tensor, layers: list[int] | None) -> Tensor:
    """Of one pair, the mean over heads and layers: (L, N) float32. Fused attention gives no weights, so the encoder
    runs with plain attention here."""
    encoder = model.text_image_encoder
    implementation = encoder.config._attn_implementation
    encoder.set_attn_implementation("eager")
    try:
        output = encoder(texts, states, output_attentions=True)
    finally:
        encoder.set_attn_implementation(implementation)
    maps = torch.stack(output.cross_attentions)[:, 0].float().cpu()  # (K, H, L, N)
    return (maps if layers is None else maps[layers]).mean(dim=(0, 1))


def _grid(model: R2D2Model, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,) as (h, w), without special tokens at the beginning."""
    patch = getattr(model.config.vision_config, "patch_size", None)
    if isinstance(patch, int) and len(weights) >= (size[0] // patch) * (size[1] // patch) > 0:
        rows, columns = size[0] // patch, size[1] // patch
    else:  # a feature map of the picture's proportions
        rows = round((len(weights) * size[0] / size[1]) ** 0.5)
        columns = len(weights) // max(rows, 1)
    if len(weights) < rows * columns or len(weights) - rows * columns > 8:
        raise ValueError(f"the image tower's {len(weights)} tokens form no rectangle like that of the picture")
    return weights[len(weights) - rows * columns :].view(rows, columns)


def _spans(text: str, word: str | None) -> list[tuple[int, int]]:
    if word is None:
        return [(0, len(text))]
    spans, start = [], text.find(word) if word else -1
    while start >= 0:
        spans.append((start, start + len(word)))
        start = text.find(word, start + len(word))
    if not spans:
        raise ValueError(f"{word!r} is not in {text!r}")
    return spans
