"""Encoding for retrieval both ways: the towers' embeddings and states, their similarities, and the pairs that the
second stage ranks, the k best of each query by cosine. What both stages say together: `scoring`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, TypeGuard

import torch
from PIL import Image
from torch import Tensor, nn

from ..model.modeling_r2d2 import R2D2Model, normalize
from ..model.modeling_wukong import WukongModel
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import as_processor_reads, open_image, opening_of, upright_rgb
from ..processing.files.progress import bar
from .finite import require_finite

Direction = Literal["text_to_image", "image_to_text"]
#: What encodes; an `R2D2OnnxModel` serves as an `R2D2Model`.
TwoTowers = R2D2Model | WukongModel


@dataclass
class EncodedImages:
    """I encoded pictures: embeds (I, D) float32, L2-normalised, or (I, N, D) of a model that compares token by token;
    hidden_states (I, N, E), None where not kept."""

    embeds: Tensor
    hidden_states: Tensor | None = None

    @property
    def states(self) -> Tensor:
        """The hidden states, for ranking.

        Raises:
            ValueError: they were not kept.
        """
        return _kept(self.hidden_states)


@dataclass
class EncodedTexts:
    """T encoded texts: embeds (T, D) float32, L2-normalised, or token by token (T, L, D), zero behind a text's end;
    hidden_states (T, L, D), None where not kept, zero there too; attention_mask (T, L), L the longest text."""

    embeds: Tensor
    attention_mask: Tensor
    hidden_states: Tensor | None = None

    @property
    def states(self) -> Tensor:
        """The hidden states, for ranking.

        Raises:
            ValueError: they were not kept.
        """
        return _kept(self.hidden_states)


def _kept(states: Tensor | None) -> Tensor:
    if states is None:
        raise ValueError("ranking needs the states of the towers: encode with keep_states=True")
    return states


def encode_images(
    model: TwoTowers,
    processor: R2D2Processor,
    images: Sequence[Image.Image | str | PathLike | Tensor],
    batch_size: int = 32,
    keep_states: bool = True,
    device: torch.device | str | None = None,
) -> EncodedImages:
    """Encode pictures, batch by batch, in evaluation mode and without gradient.

    Args:
        images: PIL pictures or paths, of any size and mode, or what `pixels_of` made of them.
        keep_states: keep the states that ranking reads (a ViT-B/16 at 224 px: 0.6 MB a picture in float32).
        device: where the result is kept; default: the model's device.

    Raises:
        ValueError: no images.
        ImageReadError: a file that cannot be read, by name.
    """
    if len(images) == 0:
        raise ValueError("images is empty: there is nothing to encode")
    embeds, states = [], []
    images = as_processor_reads(images, processor)
    with evaluating(model), bar(doing="encoding pictures", total=len(images)) as shown:
        for start in range(0, len(images), batch_size):
            batch = [pixels_of(images[i], processor) for i in range(start, min(start + batch_size, len(images)))]
            pixel_values = torch.stack(batch)
            output = model.get_image_features(pixel_values.to(model.device, model.dtype))
            embeds.append(normalize(output.pooler_output.float()).to(device or model.device))
            if keep_states:
                states.append(output.last_hidden_state.to(device or model.device))
            shown.update(len(batch))
    encoded = EncodedImages(torch.cat(embeds), torch.cat(states) if keep_states else None)
    require_finite(encoded.embeds, f"picture embeddings of {name_of(model)}", [_named(image) for image in images])
    return encoded


def name_of(model: nn.Module) -> str:
    """The folder or Hub name that a model was loaded from, else its class: for messages."""
    return getattr(getattr(model, "config", None), "name_or_path", None) or type(model).__name__


def _named(image: Any) -> str:
    return str(image) if isinstance(image, str | PathLike) else f"a {type(image).__name__}"


def pixels_of(image: Image.Image | str | PathLike | bytes | Tensor, processor: R2D2Processor) -> Tensor:
    """One picture as the tower takes it, (3, S, S) float32: of many large ones, no two are in memory at a time.
    Upright, unless the processor takes pictures as they are stored.

    Raises:
        ImageReadError: a file that cannot be read, by name.
    """
    if isinstance(image, Tensor):
        return image
    read: Any = upright_rgb if isinstance(image, Image.Image) else open_image
    image = read(image, **opening_of(processor))  # the processor of another model would not turn it
    return processor(images=[image], return_tensors="pt")["pixel_values"][0]


def encode_texts(
    model: TwoTowers,
    processor: R2D2Processor,
    texts: Sequence[str],
    batch_size: int = 256,
    keep_states: bool = True,
    device: torch.device | str | None = None,
) -> EncodedTexts:
    """Encode texts in evaluation mode and without gradient, the results in the order of `texts`.

    Batches are made of texts of similar length and trimmed to their longest, which costs a half to a third of
    padding everything to the model's length and changes nothing else.

    Args:
        texts: truncated to the model's length, with one warning.
        keep_states: as for `encode_images`.
        device: as for `encode_images`.

    Raises:
        ValueError: no texts.
        TypeError: one string instead of a sequence.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a sequence of strings, not one string: pass [text]")
    if len(texts) == 0:
        raise ValueError("texts is empty: there is nothing to encode")
    tokens = processor(text=list(texts), padding=True, return_tensors="pt")
    input_ids, attention_mask = tokens["input_ids"], tokens["attention_mask"]
    lengths = attention_mask.sum(dim=1)
    device = torch.device(device or model.device)
    embeds: Tensor | None = None
    states: Tensor | None = None
    with evaluating(model), bar(doing="encoding texts", total=len(texts), unit="texts") as shown:
        for rows in lengths.argsort(stable=True).split(batch_size):
            longest = int(lengths[rows].max())
            output = model.get_text_features(
                input_ids[rows, :longest].to(model.device), attention_mask[rows, :longest].to(model.device)
            )
            batch = normalize(output.pooler_output.float()).to(device)
            if embeds is None:
                shape = (len(texts), batch.shape[1]) if batch.dim() == 2 else (*input_ids.shape, batch.shape[2])
                embeds = batch.new_zeros(shape)
                if keep_states:
                    hidden = output.last_hidden_state
                    states = torch.zeros(*input_ids.shape, hidden.shape[2], dtype=hidden.dtype, device=device)
            if batch.dim() == 2:
                embeds[rows.to(device)] = batch
            else:
                embeds[rows.to(device), :longest] = batch
            if states is not None:
                states[rows.to(device), :longest] = output.last_hidden_state.to(device)
            shown.update(len(rows))
    assert embeds is not None  # there are texts
    require_finite(embeds, f"text embeddings of {name_of(model)}", texts)
    return EncodedTexts(embeds, attention_mask.to(device), states)


def pre_ranking_scores(model: TwoTowers, texts: EncodedTexts, images: EncodedImages) -> tuple[Tensor, Tensor]:
    """Similarities of all encoded texts and pictures, as the model compares them: cosines, or token by token.

    Returns:
        (T, I) of the texts over the pictures and (I, T) of the pictures over the texts, float32, on the CPU; the one is
        the transpose of the other unless the model is token-wise.
    """
    if not is_token_wise(model):
        cosine = (texts.embeds @ images.embeds.t().to(texts.embeds)).cpu()
        return cosine, cosine.t()
    with torch.no_grad():
        found = model.similarities(images.embeds, texts.embeds.to(images.embeds), texts.attention_mask.bool())
    per_image, per_text = found.both
    return per_text.cpu(), per_image.cpu()


def is_token_wise(model: nn.Module) -> TypeGuard[WukongModel]:
    """Whether the model compares token by token (FILIP, Wukong), so that pictures and texts have a matrix each."""
    return getattr(model, "is_token_wise", False)


def candidate_pairs(cosine: Tensor, candidates: int, direction: Direction) -> Tensor:
    """The pairs that go into the second stage: for each query the `candidates` best by cosine.

    Args:
        cosine: (T, I).
        candidates: k; at least the size of the gallery means everything.

    Returns:
        (T, I) boolean.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be at least 1, got {candidates}")
    gallery = {"text_to_image": 1, "image_to_text": 0}[direction]
    best = cosine.topk(min(candidates, cosine.shape[gallery]), dim=gallery).indices
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(gallery, best, True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
