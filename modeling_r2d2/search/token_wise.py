"""Search with models that compare token by token (FILIP, Wukong).

A row of such an index holds all tokens of a picture one after another, N·P numbers, and a caption's L·P, zero behind
its end. There is no single vector to look up, so every picture is compared, at N·L·P products each.
"""

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ..inference.encoding import EncodedImages, EncodedTexts
from ..model.modeling_wukong import WukongModel
from .store import ImageIndex


def flat_tokens(embeds: Tensor, length: int | None = None) -> Tensor:
    """Rows of an index from embeddings (B, D), as they are, or (B, L, P), padded with zeros to `length` tokens."""
    if embeds.dim() == 2:
        return embeds
    missing = 0 if length is None else length - embeds.shape[1]
    return torch.nn.functional.pad(embeds, (0, 0, 0, missing)).flatten(1)


class TokenWiseSearch:
    """Token-wise similarities of queries with everything in an index, exactly.

    Args:
        model: with `is_token_wise`.
        index: one that it made.
    """

    def __init__(self, model: WukongModel, index: ImageIndex):
        self.model, self.index, self.size = model, index, model.config.projection_dim

    @torch.no_grad()
    def images(self, texts: EncodedTexts) -> np.ndarray:
        """s(T → I) of Q texts with all pictures: (Q, I) float32."""
        queries, mask = texts.embeds.to(self.model.device), texts.attention_mask.to(self.model.device).bool()

        def compared(images: Tensor) -> Tensor:
            return cast(Tensor, self.model.similarities(images, queries, mask, image_to_text=False).per_text)

        return self._over(self.index.all_embeds(), compared)

    @torch.no_grad()
    def captions(self, images: EncodedImages) -> np.ndarray:
        """s(I → T) of Q pictures with all captions: (Q, T) float32."""
        queries = images.embeds.to(self.model.device)

        def compared(texts: Tensor) -> Tensor:
            mask = (texts != 0).any(dim=2)
            return cast(Tensor, self.model.similarities(queries, texts, mask, text_to_image=False).per_image)

        return self._over([self.index.texts[2]], compared)

    def _over(self, pieces: Iterable[np.ndarray], compared) -> np.ndarray:
        """Similarities with the rows of all pieces, piece by piece: (Q, rows)."""
        found = [compared(self._tokens(piece)).cpu().numpy() for piece in pieces if len(piece)]
        return np.concatenate(found, axis=1)

    def _tokens(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(rows)).unflatten(1, (-1, self.size)).to(self.model.device)


__all__ = ["TokenWiseSearch", "flat_tokens"]
