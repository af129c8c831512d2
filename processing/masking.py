"""Masking of text tokens for masked language modelling, reproducible from a generator per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IGNORE_INDEX = -100
# a text -> its words, in order; joined they are the text (spaces may be missing)
Segmenter = Callable[[str], Iterable[str]]


def mask_tokens(
    input_ids: np.ndarray,
    rng: np.random.Generator,
    *,
    mask_token_id: int,
    ordinary_ids: np.ndarray,
    special_mask: np.ndarray,
    mask_ratio: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    groups: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose tokens of one text and replace them: by [MASK], by a random token, or not at all.

    In the mean mask_ratio x n of the n ordinary tokens are chosen, whatever n is, so a short text often has none: at
    15 % a name of two characters has a mask in three of ten drawings. The tokens stand in a random order, end to end;
    those are chosen that begin before mask_ratio x n, and the last of them with the probability of its share before
    it. With `groups` whole words stand in that order, each as long as its tokens. Both rules are this project's: the
    paper says 15 %, and nothing of texts of which that is less than a token.

    Args:
        input_ids: (L,) int.
        mask_token_id: the id of [MASK].
        ordinary_ids: ids that a random replacement is drawn from.
        special_mask: (L,) bool, True where a token may not be masked.
        mask_share: share of the chosen tokens that become [MASK].
        random_share: share that become a random token; the rest stays as it is (80/10/10).
        groups: (L,) int, tokens of one word have one number; None masks tokens singly.

    Returns:
        masked ids (L,) int64, and labels (L,) int64: the original id where a token was chosen, -100 elsewhere.
    """
    input_ids = np.asarray(input_ids, dtype=np.int64)
    masked, labels = input_ids.copy(), np.full(input_ids.shape, IGNORE_INDEX, dtype=np.int64)
    positions = np.flatnonzero(~np.asarray(special_mask, dtype=bool))
    if not positions.size:
        return masked, labels
    words = positions if groups is None else np.asarray(groups)[positions]
    _, word, sizes = np.unique(words, return_inverse=True, return_counts=True)
    order = rng.permutation(sizes.size)
    ends = np.cumsum(sizes[order])
    taken = ends - sizes[order] * (1 - rng.random()) < mask_ratio * positions.size
    chosen = positions[np.isin(word, order[taken])]
    labels[chosen] = input_ids[chosen]
    draw = rng.random(chosen.size)
    masked[chosen[draw < mask_share]] = mask_token_id
    random_places = chosen[(draw >= mask_share) & (draw < mask_share + random_share)]
    masked[random_places] = ordinary_ids[rng.integers(ordinary_ids.size, size=random_places.size)]
    return masked, labels


def word_groups(offsets: Sequence[tuple[int, int]], text: str, segment: Segmenter) -> np.ndarray:
    """The number of the word that each token begins in: (L,) int64; tokens outside every word get numbers of
    their own.

    Args:
        offsets: (start, end) of every token in `text`, as fast tokenizers give them; (0, 0) for special ones.
        segment: cuts the text into words.

    Raises:
        ValueError: the words are not pieces of the text in their order.
    """
    owner = np.full(len(text) + 1, -1, dtype=np.int64)
    place = 0
    for number, word in enumerate(segment(text)):
        if not word:
            continue
        start = text.find(word, place)
        if start < 0:
            raise ValueError(f"the segmenter gave {word!r}, which does not follow in {text!r}")
        place = start + len(word)
        owner[start:place] = number
    starts = np.array([start for start, _ in offsets], dtype=np.int64)
    real = np.array([end > start for start, end in offsets], dtype=bool)
    groups = np.where(real, owner[starts], -1)
    alone = groups < 0
    groups[alone] = len(text) + 1 + np.arange(alone.sum())
    return groups


def jieba_segmenter() -> Segmenter:
    """Word boundaries by jieba.

    Raises:
        ImportError: jieba is not installed; says how.
    """
    try:
        import jieba
    except ImportError as error:
        raise ImportError(
            "whole-word masking cuts words with jieba: pip install 'modeling-r2d2[wwm]', "
            "or hand in a function of your own as `segment`"
        ) from error
    jieba.setLogLevel("WARNING")
    return jieba.lcut


@dataclass
class TextMasking:
    """Masked language modelling for one tokenizer; see `mask_tokens`.

    The ratio of 0.15 is the paper's; 80/10/10 and whole words are this project's choice.

    Attributes:
        tokenizer: a fast BERT-like tokenizer with a [MASK].
        mask_ratio: share of the ordinary tokens to choose.
        mask_share: of the chosen ones, see `mask_tokens`.
        random_share: of the chosen ones.
        whole_words: choose whole Chinese words instead of characters.
        segment: cuts a text into words; default jieba.

    Raises:
        ValueError: a tokenizer without [MASK] or ordinary tokens, or values that are no shares.
        ImportError: whole words without jieba.
    """

    tokenizer: Any
    mask_ratio: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_words: bool = False
    segment: Segmenter | None = None
    _special: np.ndarray = field(init=False, repr=False)
    _ordinary: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise ValueError("the tokenizer has no mask token: masked language modelling needs one")
        if not 0 <= self.mask_ratio <= 1:
            raise ValueError(f"mask_ratio is {self.mask_ratio}; it is a share between 0 and 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share are shares and add up to at most 1")
        if self.whole_words and self.segment is None:
            self.segment = jieba_segmenter()
        size = len(self.tokenizer)
        self._special = np.zeros(size, dtype=bool)
        self._special[[i for i in self.tokenizer.all_special_ids if i < size]] = True
        self._ordinary = np.flatnonzero(~self._special)
        if not self._ordinary.size:
            raise ValueError("the tokenizer's vocabulary holds special tokens only")

    def groups(self, text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray | None:
        """The words of a text as `mask_tokens` takes them; None without whole-word masking."""
        if not self.whole_words or self.segment is None:
            return None
        return word_groups(offsets, text, self.segment)

    def __call__(
        self, input_ids: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masked ids and labels of one text: (L,), (L,) int64."""
        input_ids = np.asarray(input_ids, dtype=np.int64)
        return mask_tokens(
            input_ids,
            rng,
            mask_token_id=self.tokenizer.mask_token_id,
            ordinary_ids=self._ordinary,
            special_mask=self._special[input_ids],
            mask_ratio=self.mask_ratio,
            mask_share=self.mask_share,
            random_share=self.random_share,
            groups=groups,
        )
