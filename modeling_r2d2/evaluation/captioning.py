"""Captions against references, on Chinese characters: BLEU-4, ROUGE-L, CIDEr-D and the share that is exactly right.

The formulas are those of COCO's evaluation (pycocoevalcap, with which the tests compare), applied to characters: its
tokeniser is a Java program for English, and Chinese has no spaces to cut at. Figures on words (as some papers cut
them with jieba) are not comparable.

- BLEU-4 (Papineni et al. 2002): of the whole set, the reference length closest to each caption's.
- ROUGE-L (Lin 2004): F with beta 1.2 of the longest common subsequence; best precision and best recall over the
  references.
- CIDEr-D (Vedantam et al. 2015): n = 1 … 4, sigma 6, times 10; document frequencies from the references judged, so
  that figures of different sets or parts of one are not comparable.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..inference.bootstrap import Bootstrap, weighted_means

_TOKEN = re.compile(r"[a-z0-9]+|[^\W_]")
_ORDERS = 4
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0
# as in COCO's evaluation: a caption without 4-grams gives a tiny BLEU, not a division by zero
_TINY, _SMALL = 1e-15, 1e-9

NAMES = ("bleu4", "rouge_l", "cider", "exact_match")


def caption_tokens(text: str) -> list[str]:
    """Every Chinese character, every run of Latin letters and digits; in one width and case, without punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


def captioning_metrics(
    captions: Sequence[str], references: Sequence[Sequence[str]], bootstrap: Bootstrap | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """All metrics of a set of captions.

    Args:
        captions: (N,) one for each picture; "" where the model said nothing.
        references: (N,) lists, each not empty.
        bootstrap: None: no intervals. Resampling keeps the document frequencies of the whole set.

    Returns:
        metrics `bleu4`, `rouge_l` and `exact_match` in percent and `cider` (times 10, as usual); their intervals.

    Raises:
        ValueError: unequal lengths, a picture without references, fewer than two pictures (CIDEr has no document
            frequencies then).
    """
    candidate, refs = _tokenised(captions, references)
    statistics = _bleu_statistics(candidate, refs)
    means = np.stack(
        [_rouge_scores(candidate, refs), _cider_scores(candidate, refs), _exact_scores(candidate, refs)], axis=1
    )
    scale = np.array([100, 100, 1, 100])

    def metric(counts: np.ndarray) -> np.ndarray:
        bleu = _bleu(counts @ statistics)
        return scale * np.concatenate([bleu[:, None], weighted_means(counts, means, np.ones_like(means))], axis=1)

    values = metric(np.ones((1, len(candidate))))[0]
    ends = None if bootstrap is None else bootstrap.intervals(len(candidate), metric)
    intervals = (
        {} if ends is None else {n: (float(low), float(high)) for n, (low, high) in zip(NAMES, ends, strict=True)}
    )
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}, intervals


def bleu4(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a set, in percent; arguments and errors as `captioning_metrics`."""
    candidate, refs = _tokenised(captions, references, least=1)
    return 100 * float(_bleu(_bleu_statistics(candidate, refs).sum(axis=0, keepdims=True))[0])


def rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of every caption, in percent: (N,)."""
    return 100 * _rouge_scores(*_tokenised(captions, references, least=1))


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of every caption, from 0 to 10: (N,); the set's figure is the mean."""
    return _cider_scores(*_tokenised(captions, references))


def _tokenised(
    captions: Sequence[str], references: Sequence[Sequence[str]], least: int = 2
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if isinstance(captions, str):
        raise ValueError("captions is one string; give a list with a caption for every picture")
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions for {len(references)} lists of references")
    for place, refs in enumerate(references):
        if isinstance(refs, str) or len(refs) == 0:
            raise ValueError(f"the references of caption {place} are {refs!r:.40}; give a list of at least one text")
    if len(captions) < least:
        raise ValueError(
            f"{len(captions)} captions: CIDEr weighs n-grams by how many pictures have them, give at least 2"
        )
    return [caption_tokens(c) for c in captions], [[caption_tokens(r) for r in refs] for refs in references]


def _ngrams(tokens: list[str]) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, _ORDERS + 1) for i in range(len(tokens) - n + 1))


def _bleu_statistics(captions: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    """(N, 10): n-grams found in a reference for n = 1 … 4, n-grams there are, own length, closest reference's."""
    rows = np.zeros((len(captions), 2 * _ORDERS + 2))
    for row, caption, refs in zip(rows, captions, references, strict=True):
        most: Counter = Counter()
        for ref in refs:
            most |= _ngrams(ref)
        for ngram, count in (_ngrams(caption) & most).items():
            row[len(ngram) - 1] += count
        row[_ORDERS : 2 * _ORDERS] = [max(len(caption) - n, 0) for n in range(_ORDERS)]
        row[-2] = len(caption)
        row[-1] = min((abs(len(ref) - len(caption)), len(ref)) for ref in refs)[1]
    return rows


def _bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-4 of summed statistics: (R, 10) to (R,)."""
    precisions = (sums[:, :_ORDERS] + _TINY) / (sums[:, _ORDERS : 2 * _ORDERS] + _SMALL)
    ratio = (sums[:, -2] + _TINY) / (sums[:, -1] + _SMALL)
    with np.errstate(over="ignore", under="ignore"):
        brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
    return precisions.prod(axis=1) ** (1 / _ORDERS) * brevity


def _common_length(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, a row of the usual table at a time as the bits of one integer."""
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        met = row & places.get(token, 0)
        row = ((row + met) | (row - met)) & full
    return len(first) - row.bit_count()


def _rouge_scores(captions: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    scores = np.zeros(len(captions))
    for place, (caption, refs) in enumerate(zip(captions, references, strict=True)):
        common = [_common_length(caption, ref) for ref in refs]
        if not any(common):
            continue
        precision = max(common) / len(caption)
        recall = max(c / len(ref) for c, ref in zip(common, refs, strict=True) if ref)
        scores[place] = (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)
    return scores


def _cider_scores(captions: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    cooked = [[_ngrams(ref) for ref in refs] for refs in references]
    frequency = Counter(ngram for refs in cooked for ngram in set().union(*refs))
    log_images = math.log(len(captions))

    def vectors(counts: Counter) -> tuple[dict, np.ndarray]:
        weights = {ngram: n * (log_images - math.log(max(frequency[ngram], 1))) for ngram, n in counts.items()}
        squares = np.zeros(_ORDERS)
        for ngram, weight in weights.items():
            squares[len(ngram) - 1] += weight**2
        return weights, np.sqrt(squares)

    scores = np.zeros(len(captions))
    for place, (caption, refs) in enumerate(zip(captions, cooked, strict=True)):
        weights, norm = vectors(_ngrams(caption))
        for counts, ref in zip(refs, references[place], strict=True):
            ref_weights, ref_norm = vectors(counts)
            products = np.zeros(_ORDERS)
            for ngram, weight in weights.items():
                if (other := ref_weights.get(ngram)) is not None:
                    products[len(ngram) - 1] += min(weight, other) * other
            norms = norm * ref_norm
            cosines = np.divide(products, norms, out=np.zeros(_ORDERS), where=norms > 0)
            penalty = math.exp(-((len(caption) - len(ref)) ** 2) / (2 * _CIDER_SIGMA**2))
            scores[place] += 10 * penalty * cosines.mean() / len(refs)
    return scores


def _exact_scores(captions: list[list[str]], references: list[list[list[str]]]) -> np.ndarray:
    return np.array([float(caption in refs) for caption, refs in zip(captions, references, strict=True)])
