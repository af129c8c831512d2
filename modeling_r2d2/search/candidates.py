"""The second stage of a search: match probabilities of the candidates, every picture and text prepared once."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inference.encoding import EncodedTexts, encode_images, encode_texts, pixels_of
from ..inference.ranker import FastRanker, RankedImages, RankedTexts
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.images import ImageReadError, turns_upright
from .cache import unpack
from .store import ImageIndex

logger = logging.getLogger(__name__)

#: Memory for the prepared states of the pictures that are ranked at a time.
_BLOCK_BYTES = 2**28


class CandidateRanking:
    """Ranks candidates of an index for queries already encoded; results by row: (probability, encoders asked)."""

    def __init__(self, model: R2D2Model, processor: R2D2Processor, ranker: FastRanker, index: ImageIndex):
        self.model, self.processor, self.ranker, self.index = model, processor, ranker, index

    def images(self, queries: EncodedTexts, chosen: list, cascade: int | None, found: list) -> list[dict]:
        """Match probability of the candidates of text queries: by row, with the number of encoders asked."""
        distinct = np.unique(np.concatenate(chosen))
        pairs = [(q, int(row)) for q, rows in enumerate(chosen) for row in rows]
        texts = ranked(queries)
        cosines = [dict(zip(rows.tolist(), cosine.tolist(), strict=True)) for rows, cosine in found]

        def run(wanted: list[tuple[int, int]], **encoders: Any) -> dict[tuple[int, int], Tensor]:
            by_row: dict[int, list[int]] = {}
            for query, row in wanted:
                by_row.setdefault(row, []).append(query)
            rows = np.array([row for row in distinct if int(row) in by_row], dtype=np.int64)
            out = {}
            for start in range(0, len(rows), self._block):
                kept, images = self._images(rows[start : start + self._block])
                index = [(q, place) for place, row in enumerate(kept) for q in by_row[row]]
                if images is None:
                    continue
                text_index, image_index = torch.tensor(index, device=self.model.device).t().contiguous()
                logits = self.ranker.logits(texts, images, text_index, image_index, **encoders)
                part = torch.stack(
                    [each[:, :2] for each in (logits.text_match_logits, logits.image_match_logits) if each is not None]
                ).float()
                values = part.softmax(dim=-1)[..., 1].t().cpu()
                out.update({(q, kept[place]): value for (q, place), value in zip(index, values, strict=True)})
            return out

        return self._cascaded(run, pairs, cascade, cosines)

    def captions(self, states: Tensor, chosen: list, cascade: int | None, found: list) -> list[dict]:
        """Match probability of the candidate captions of picture queries."""
        captions, _, _ = self.index.texts
        distinct = np.unique(np.concatenate(chosen)).tolist()
        place_of = {row: place for place, row in enumerate(distinct)}
        texts = ranked(encode_texts(self.model, self.processor, [captions[row] for row in distinct]))
        images = self.ranker.prepare(states)
        pairs = [(q, int(row)) for q, rows in enumerate(chosen) for row in rows]
        cosines = [dict(zip(rows.tolist(), cosine.tolist(), strict=True)) for rows, cosine in found]

        def run(wanted: list[tuple[int, int]], **encoders: Any) -> dict[tuple[int, int], Tensor]:
            device = self.model.device
            text_index = torch.tensor([place_of[row] for _, row in wanted], device=device)
            image_index = torch.tensor([query for query, _ in wanted], device=device)
            logits = self.ranker.logits(texts, images, text_index, image_index, **encoders)
            part = [each for each in (logits.text_match_logits, logits.image_match_logits) if each is not None]
            values = torch.stack(part).float().softmax(dim=-1)[..., 1].t().cpu()
            return dict(zip(wanted, values, strict=True))

        return self._cascaded(run, pairs, cascade, cosines)

    def _cascaded(self, run, pairs: list[tuple[int, int]], cascade: int | None, cosines: list[dict]) -> list[dict]:
        """All pairs by both encoders; or by the first one, and its best of each query by the second one too."""
        ranked: list[dict[int, tuple[float, int]]] = [{} for _ in cosines]
        if cascade is None:
            for (query, row), values in run(pairs).items():
                ranked[query][row] = (float(values.mean()), 2)
            return ranked
        first = run(pairs, image_text=False)
        for (query, row), values in first.items():
            ranked[query][row] = (float(values[0]), 1)
        best: list[tuple[int, int]] = []
        for query, by_row in enumerate(ranked):
            scores = {row: -(alone + cosines[query][row]) for row, (alone, _) in by_row.items()}
            best.extend((query, row) for row in sorted(scores, key=scores.__getitem__)[:cascade])
        for (query, row), values in (run(best, text_image=False) if best else {}).items():
            ranked[query][row] = ((ranked[query][row][0] + float(values[0])) / 2, 2)
        return ranked

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
                image = self.index.image(row).open(turns_upright(self.processor))
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


def ranked(texts: EncodedTexts) -> RankedTexts:
    """Encoded texts as the fast ranker takes them."""
    return RankedTexts(texts.states, texts.attention_mask.sum(dim=1))
