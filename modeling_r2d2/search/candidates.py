"""The second stage of a search: log-odds of the candidates' match, every picture and text prepared once."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inference.encoding import EncodedTexts, encode_images, encode_texts, pixels_of
from ..inference.packing import unpack
from ..inference.ranker import FastRanker, MatchLogits, RankedImages, RankedTexts
from ..inference.scoring import TwoStageScore
from ..model.modeling_r2d2 import R2D2Model, match_log_odds
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import ImageReadError, opening_of
from .store import ImageIndex

logger = logging.getLogger(__name__)

#: Memory for the prepared states of the pictures that are ranked at a time.
_BLOCK_BYTES = 2**28


#: A query and a row of the index.
Pair = tuple[int, int]
#: By row: log-odds of the match probability, and how many encoders it is of.
Ranked = dict[int, tuple[float, int]]


class CandidateRanking:
    """Ranks candidates of an index for queries already encoded."""

    def __init__(self, model: R2D2Model, processor: R2D2Processor, ranker: FastRanker, index: ImageIndex):
        self.model, self.processor, self.ranker, self.index = model, processor, ranker, index

    def images(
        self, queries: EncodedTexts, chosen: list, cascade: int | None, found: list, score: TwoStageScore
    ) -> list[Ranked]:
        """Log-odds of the candidates of text queries.

        Args:
            chosen: rows for each query.
            cascade: of how many of each query's best by the first encoder the second one is asked; None: of all.
            found: rows and cosines for each query.
            score: what a cascade chooses by.
        """
        distinct = np.unique(np.concatenate(chosen))
        pairs = [(q, int(row)) for q, rows in enumerate(chosen) for row in rows]
        texts = ranked(queries)

        def run(wanted: list[Pair], **encoders: Any) -> dict[Pair, Tensor]:
            by_row: dict[int, list[int]] = {}
            for query, row in wanted:
                by_row.setdefault(row, []).append(query)
            rows = np.array([row for row in distinct if int(row) in by_row], dtype=np.int64)
            out: dict[Pair, Tensor] = {}
            for start in range(0, len(rows), self._block):
                kept, images = self._images(rows[start : start + self._block])
                index = [(q, place) for place, row in enumerate(kept) for q in by_row[row]]
                if images is None:
                    continue
                text_index, image_index = torch.tensor(index, device=self.model.device).t().contiguous()
                logits = self.ranker.logits(texts, images, text_index, image_index, **encoders)
                out.update(_by_pair([(q, kept[place]) for q, place in index], logits))
            return out

        return _cascaded(run, pairs, cascade, found, score)

    def captions(
        self, states: Tensor, chosen: list, cascade: int | None, found: list, score: TwoStageScore
    ) -> list[Ranked]:
        """Log-odds of the candidate captions of picture queries; arguments as of `images`."""
        captions, _, _ = self.index.texts
        distinct = np.unique(np.concatenate(chosen)).tolist()
        place_of = {row: place for place, row in enumerate(distinct)}
        texts = ranked(encode_texts(self.model, self.processor, [captions[row] for row in distinct]))
        images = self.ranker.prepare(states)
        pairs = [(q, int(row)) for q, rows in enumerate(chosen) for row in rows]

        def run(wanted: list[Pair], **encoders: Any) -> dict[Pair, Tensor]:
            device = self.model.device
            text_index = torch.tensor([place_of[row] for _, row in wanted], device=device)
            image_index = torch.tensor([query for query, _ in wanted], device=device)
            return _by_pair(wanted, self.ranker.logits(texts, images, text_index, image_index, **encoders))

        return _cascaded(run, pairs, cascade, found, score)

    @property
    def _block(self) -> int:
        """Pictures whose states are prepared at a time."""
        cross = self.model.config.cross_encoder_config
        assert cross is not None  # a ranker's
        layers = cross.num_hidden_layers * 2 if self.index.manifest.cache["keep"] == "keys_values" else 2
        tokens = 256
        return max(_BLOCK_BYTES // (4 * tokens * cross.hidden_size * layers), 8)

    def _images(self, rows: np.ndarray) -> tuple[list[int], RankedImages | None]:
        """Prepared states of pictures, from what is kept or by the image tower; without those that are gone."""
        if self.index.manifest.cache["keep"] != "none":
            tensors = unpack(self.index.cached(rows), self.model.dtype, self.model.device)
            if "queries" in tensors:
                if "keys" not in tensors:  # a ranker of one layer has none to keep
                    return rows.tolist(), self.ranker.with_keys_values(RankedImages(**tensors))
                return rows.tolist(), RankedImages(**tensors)
            return rows.tolist(), self.ranker.prepare(tensors["states"])
        pixels, kept, failed = [], [], []
        for row in rows.tolist():
            try:
                image = self.index.image(row).open(**opening_of(self.processor))
                pixels.append(pixels_of(image, self.processor))
                kept.append(row)
            except ImageReadError as error:
                failed.append(error)
        if failed:
            logger.warning(
                "%d candidates are not ranked, since their files cannot be read, such as %s", len(failed), failed[0]
            )
        if not pixels:
            return [], None
        return kept, self.ranker.prepare(encode_images(self.model, self.processor, pixels).states)


def _by_pair(pairs: list[Pair], logits: MatchLogits) -> dict[Pair, Tensor]:
    """(E, 2) logits of each pair, of the E encoders that were asked."""
    known = [each for each in (logits.text_match_logits, logits.image_match_logits) if each is not None]
    return dict(zip(pairs, torch.stack(known, dim=1).float().cpu(), strict=True))


def _cascaded(
    run: Callable[..., dict[Pair, Tensor]], pairs: list[Pair], cascade: int | None, found: list, score: TwoStageScore
) -> list[Ranked]:
    """All pairs by both encoders; or by the first one, and its best of each query by the second one too."""
    results: list[Ranked] = [{} for _ in found]

    def note(logits: dict[Pair, Tensor], encoders: int) -> None:
        if logits:
            both = torch.stack([*logits.values()])
            for (query, row), log_odds in zip(logits, match_log_odds(both[:, 0], both[:, -1]).tolist(), strict=True):
                results[query][row] = (log_odds, encoders)

    if cascade is None:
        note(run(pairs), 2)
        return results
    first = run(pairs, image_text=False)
    note(first, 1)
    best: list[Pair] = []
    for query, (by_row, (rows, cosine)) in enumerate(zip(results, found, strict=True)):
        cosine_of = dict(zip(rows.tolist(), cosine.tolist(), strict=True))
        own = [*by_row]
        log_odds = torch.tensor([by_row[row][0] for row in own], dtype=torch.float64)
        scores = score(torch.tensor([cosine_of[row] for row in own], dtype=torch.float64), log_odds)
        best += [(query, own[place]) for place in scores.argsort(descending=True, stable=True)[:cascade].tolist()]
    second = run(best, text_image=False) if best else {}
    note({pair: torch.cat([first[pair], logits]) for pair, logits in second.items()}, 2)
    return results


def ranked(texts: EncodedTexts) -> RankedTexts:
    """Encoded texts as the fast ranker takes them."""
    return RankedTexts(texts.states, texts.attention_mask.sum(dim=1))
