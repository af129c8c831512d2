"""Hard negatives of a whole set: towers that stand still have embeddings of every picture and text, known beforehand.

While towers train, a batch is all that its pairs can be compared with. Of frozen ones the negatives come from the whole
set, drawn as FGR draws them (arXiv 2205.03860), but with all that there is as candidates:

    q(j | query) ∝ exp(β · s_j/τ)        over the distinct pictures, or texts, that do not belong to the query

s/τ is cosine / temperature, without a sigmoid tower's bias, which would cancel. β is 1 at the end of a run at the
latest, for the fused score rests on that draw (`inference.scoring`); every candidate is listed once, however often it
occurs, so that there m(j) is 1.

A pair costs D · (I + T) multiplications of D-dimensional embeddings: a batch of 128 in a set of 100,000 pictures and as
many texts at D = 512 half a second of one core, which loader processes (`--workers`) share.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..model.losses_r2d2 import columns_at
from ..processing.datasets.pair_sets import Pairs
from ..processing.files.progress import bar

#: Similarities that are held at a time.
_ENTRIES = 1 << 24


class Lists:
    """Lists of numbers, `lists[k]` (n_k,) int64, in two arrays."""

    def __init__(self, owners: np.ndarray, values: np.ndarray, count: int) -> None:
        order = np.argsort(owners, kind="stable")
        self.values = values[order]
        self.ends = np.searchsorted(owners[order], np.arange(count + 1))

    def __getitem__(self, number: int) -> np.ndarray:
        return self.values[self.ends[number] : self.ends[number + 1]]

    def __len__(self) -> int:
        return len(self.ends) - 1


@dataclass(frozen=True)
class PairListing:
    """What N pairs consist of: I distinct pictures, T distinct texts and K identities.

    Args:
        rows: (I,) int64, a pair of each picture.
        images: (N,) int64, the picture of each pair.
        texts: (T,).
        texts_of: of each pair the numbers of its texts, in their order.
        ids: (I,) int64, the identity of each picture.
    """

    rows: np.ndarray
    images: np.ndarray
    texts: list[str]
    texts_of: Lists
    ids: np.ndarray

    @classmethod
    def of(cls, pairs: Pairs) -> "PairListing":
        """Of a set of pairs, without opening a picture of a set that knows its texts."""
        images, rows = _numbered(pairs.image_keys())
        ids, _ = _numbered(pairs.image_ids().tolist())
        known: dict[str, int] = {}
        owners, values = [], []
        for row in bar(range(len(pairs)), doing="listing texts", unit="pairs"):
            for text in pairs.texts(row):
                owners.append(row)
                values.append(known.setdefault(text, len(known)))
        texts_of = Lists(np.array(owners), np.array(values), len(pairs))
        return cls(rows, images, list(known), texts_of, ids[rows])


class WholeSetNegatives:
    """Draws wrong pictures for texts and wrong texts for pictures, among all of a set.

    A picture belongs to a text where the set gives it that text, or gives it to a picture of the same `image_id`: two
    pictures with one caption are no negatives of each other's captions.

    Args:
        listing: of the set.
        image_embeds: (I, D), L2-normalised.
        text_embeds: (T, D), L2-normalised.
        temperature: τ.

    Raises:
        ValueError: not one pair has a wrong picture and a wrong text.
    """

    def __init__(self, listing: PairListing, image_embeds: Tensor, text_embeds: Tensor, temperature: float) -> None:
        # loader processes share them
        self.image_embeds = image_embeds.float().cpu().share_memory_()
        self.text_embeds = (text_embeds.float().cpu() / temperature).share_memory_()
        self.ids = listing.ids
        lists, count = listing.texts_of, int(listing.ids.max()) + 1
        owners = listing.ids[listing.images[np.repeat(np.arange(len(lists)), np.diff(lists.ends))]]
        known = np.unique(np.stack([owners, lists.values]), axis=1)
        self.texts_of_id = Lists(known[0], known[1], count)
        self.ids_of_text = Lists(known[1], known[0], len(listing.texts))
        self.images_of_id = Lists(listing.ids, np.arange(len(listing.ids)), count)
        images, texts = len(listing.ids), len(listing.texts)
        if not any(
            len(self.texts_of(image)) < texts and any(len(self.images_of(text)) < images for text in own)
            for image in range(images)
            for own in [self.texts_of(image)]
        ):
            raise ValueError(
                f"a ranker learns from wrong pairs, and {images} pictures with {texts} texts have none: every text "
                "belongs to every picture (equal texts and equal image_ids belong together); give it more pairs"
            )

    def images_of(self, text: int) -> np.ndarray:
        """All pictures that a text belongs to."""
        return np.concatenate([self.images_of_id[each] for each in self.ids_of_text[text]])

    def texts_of(self, image: int) -> np.ndarray:
        """All texts that belong to a picture."""
        return self.texts_of_id[self.ids[image]]

    def draw(
        self, texts: np.ndarray, images: np.ndarray, uniform: np.ndarray, sharpness: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wrong pictures for B texts and wrong texts for B pictures.

        Args:
            texts: (B,) int64.
            images: (B,) int64.
            uniform: (B, 2) float64 in [0, 1): the random numbers of both draws.
            sharpness: (B,) β.

        Returns:
            pictures (B,), texts (B,), and which of the pairs have both, (B,) bool.
        """
        sides = (
            (self.text_embeds[texts], self.image_embeds, [self.images_of(text) for text in texts]),
            (self.image_embeds[images], self.text_embeds, [self.texts_of(image) for image in images]),
        )
        wrong_images, wrong_texts = (
            _drawn(*side, torch.from_numpy(uniform[:, number, None]), torch.from_numpy(sharpness[:, None]).float())
            for number, side in enumerate(sides)
        )
        valid = np.array(
            [
                len(of_text) < len(self.image_embeds) and len(of_image) < len(self.text_embeds)
                for of_text, of_image in zip(sides[0][2], sides[1][2], strict=True)
            ]
        )
        return wrong_images.numpy(), wrong_texts.numpy(), valid


def _drawn(queries: Tensor, candidates: Tensor, own: list[np.ndarray], uniform: Tensor, sharpness: Tensor) -> Tensor:
    """(B,) candidates by softmax(β · queries · candidatesᵀ) without each row's own; any, where there is no other."""
    found = []
    size = max(_ENTRIES // len(candidates), 1)
    for part in torch.arange(len(queries)).split(size):
        logits = (queries[part] * sharpness[part]) @ candidates.t()
        for row, number in enumerate(part.tolist()):
            if len(own[number]) < len(candidates):
                logits[row, own[number]] = -torch.inf
        # rounding of the sum must not reach what it adds up, of which there may be a million
        found.append(columns_at(logits.softmax(dim=1).cumsum(dim=1, dtype=torch.float64), uniform[part]))
    return torch.cat(found)


def _numbered(keys: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """The number of each key, equal keys sharing one, and the first place of each number."""
    known: dict[Hashable, int] = {}
    first: list[int] = []
    numbers = np.empty(len(keys), dtype=np.int64)
    for place, key in enumerate(keys):
        numbers[place] = number = known.setdefault(key, len(known))
        if number == len(first):
            first.append(place)
    return numbers, np.array(first, dtype=np.int64)


__all__ = ["Lists", "PairListing", "WholeSetNegatives"]
