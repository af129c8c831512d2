"""Two-stage search in an index of pictures: cosine finds the candidates, the ranker orders them."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inference.calibration import Calibration
from ..inference.encoding import (
    EncodedImages,
    EncodedTexts,
    encode_images,
    encode_texts,
    is_token_wise,
)
from ..inference.identity import ModelIdentity
from ..inference.models import load_model
from ..inference.packing import Precision
from ..inference.ranker import FastRanker
from ..inference.scoring import ScoreRule, TwoStageScore, in_tiers
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..model.ranges_r2d2 import require_number
from ..model.two_towers_r2d2 import require_ranker
from ..processing.files.images import open_image, opening_of
from .building import IndexBuilder, IndexChanges, open_for_reading, remember_model
from .cache import CacheOptions, Keep
from .candidates import CandidateRanking, Ranked
from .images import CollectionImage
from .manifest import Manifest
from .results import SearchHit, SearchResult
from .store import ImageIndex
from .token_wise import TokenWiseSearch
from .vectors import FaissVectors, VectorSearch, build_vectors

logger = logging.getLogger(__name__)

ImageQuery = str | PathLike | Image.Image


@dataclass(frozen=True)
class MatchResult:
    """Of I pictures and T texts: match_probability (I, T), calibrated where the model has a calibration;
    raw_match_probability (I, T); cosine (I, T); score (I, T), both stages' as a search orders by it. Float32."""

    match_probability: Tensor
    raw_match_probability: Tensor
    cosine: Tensor
    score: Tensor


class R2D2Retriever:
    """Search in a collection of pictures by Chinese text or by a picture.

    ```python
    R2D2Retriever.build("photos", model="runs/demo", index="photos.index")
    retriever = R2D2Retriever.open("photos.index")
    for hit in retriever.search("一只小狗", top_k=5)[0].hits:
        print(hit.rank, hit.path, hit.match_probability, hit.cosine)
    ```

    Args:
        model: an R2D2 (pre-ranking and ranking), PRD2, Wukong or BriVL (pre-ranking alone).
        processor: the model's.
        index: an index that this model made; None: only `match` and `heat_map`.
        calibration: of the match probability; None: as the model gives it.
        vectors: where the nearest embeddings are looked up; default: what the index says.
        chunk: pairs that the ranker sees at a time, see `FastRanker`.
        score: of both stages where a call names none, see `search`.

    Raises:
        OtherModelError: the index was made by another model, or with other preprocessing.
        ValueError: an unknown score.
    """

    def __init__(
        self,
        model: R2D2Model,
        processor: R2D2Processor,
        index: ImageIndex | None = None,
        calibration: Calibration | None = None,
        vectors: VectorSearch | None = None,
        chunk: int | None = None,
        score: ScoreRule | None = None,
    ):
        self.model, self.processor, self.index, self.calibration = model.eval(), processor, index, calibration
        self.ranker = FastRanker(model, chunk) if model.can_rank else None
        if score is not None:
            require_ranker(model.config, "a score of both stages")
            TwoStageScore.of(model, score)
        self.rule = score
        self.stage = None
        if index is not None and self.ranker is not None:
            self.stage = CandidateRanking(model, processor, self.ranker, index)
        self.tokens = TokenWiseSearch(model, index) if index is not None and is_token_wise(model) else None
        if self.tokens is not None and vectors is not None:
            raise ValueError("this model compares token by token: there is no vector of a picture to look up")
        self.vectors = vectors
        if index is not None and vectors is None and self.tokens is None:
            self.vectors = _vectors_of(index)

    @classmethod
    def open(
        cls,
        index: str | PathLike,
        model: str | PathLike | R2D2Model | None = None,
        processor: R2D2Processor | None = None,
        device: str | torch.device | None = None,
        verify: bool = True,
        calibrated: bool = True,
        effort: int | None = None,
        chunk: int | None = None,
        score: ScoreRule | None = None,
    ) -> "R2D2Retriever":
        """Open an index that `build` or `r2d2 index` made.

        Args:
            model: folder, Hub name or loaded model; default: where the index says that its model was. Where that is
                no longer, the index remembers the place that is given.
            verify: compare every file's checksum first.
            calibrated: use the model's calibration, if it has one.
            effort: of an approximate vector index, see `FaissVectors`.
            score: as in the class.

        Raises:
            IndexFileError: no index there, a torn or edited file, an index of another version.
            OtherModelError: it belongs to another model.
            ValueError: its model is no longer where it was.
        """
        index = Path(index)
        model = model or Manifest.load(index).model.place(index)
        network, processor = load_model(model, processor, device)
        identity = ModelIdentity.of(network, processor)
        opened = open_for_reading(index, identity, verify)
        if opened.manifest.model.is_gone:
            remember_model(index, identity)
        calibration = Calibration.of_model(model, network) if calibrated else None
        vectors = None if is_token_wise(network) else _vectors_of(opened, effort)
        return cls(network, processor, opened, calibration, vectors, chunk, score)

    @classmethod
    def build(
        cls,
        images: Any,
        model: str | PathLike | R2D2Model,
        index: str | PathLike,
        processor: R2D2Processor | None = None,
        keep: Keep = "none",
        precision: Precision = "float16",
        device: str | torch.device | None = None,
        prune: bool = False,
        rebuild: bool = False,
        reading: dict | None = None,
        **options: Any,
    ) -> IndexChanges:
        """Index pictures, or add them to the index that is there; see `IndexBuilder` and its `add`.

        Args:
            images: a folder, JSON lines, CSV, Parquet, tar shards or a `datasets` data set; see `list_images`.
            keep: what is kept for the ranker; see `CacheOptions`.
            precision: see `CacheOptions`.
            prune: of `add`.
            rebuild: of `add`.
            reading: of `list_images`.
            options: of `IndexBuilder` (vectors, batch_size, accelerator, …).
        """
        network, processor = load_model(model, processor, device)
        builder = IndexBuilder(network, processor, index, CacheOptions(keep, precision), **options)
        return builder.add(images, prune, rebuild, **(reading or {}))

    # -- search ---------------------------------------------------------------------------------

    def search(
        self,
        texts: str | Sequence[str] | None = None,
        images: ImageQuery | Sequence[ImageQuery] | None = None,
        find: Literal["images", "texts"] = "images",
        top_k: int = 10,
        candidates: int = 128,
        min_match_probability: float | None = None,
        cascade: int | None = None,
        score: ScoreRule | None = None,
    ) -> list[SearchResult]:
        """Search by texts, or by pictures; a batch of queries shares the work on pictures that several of them need.

        text → image and image → text are ranked by both stages; image → image by cosine, since the ranker compares
        texts with pictures. A model without a ranker (PRD2, BriVL) orders everything by cosine; a token-wise one by
        its similarity of the query with each picture or caption, and has none for two pictures.

        Args:
            texts: one query or several; or `images`.
            images: one query or several.
            find: "images", or "texts": the captions that the index's source had.
            top_k: hits of each query; all there are if there are fewer.
            candidates: how many of the best by cosine the ranker orders (the authors: 128 or 64). 0: none.
            min_match_probability: leave out hits below it, and hits that the ranker was not asked about.
            cascade: the text-image encoder alone orders the candidates, and both encoders only its best `cascade`.
                Several times faster; what lies between gets the first encoder's probability.
            score: what orders the candidates: "fused", cosine / temperature + log-odds of the match probability, or
                "published", cosine + match probability; None: as the model's configuration says. A calibration that
                has fitted weights of both (`Calibration.similarity_slope`) is what "fused" orders by.

        Returns:
            a result for each query, in order.

        Raises:
            ValueError: no query, one without any character, counts below 1, no captions to find,
                `min_match_probability` or `score` where nothing is ranked, an unknown score, or two of a kind compared
                token by token.
        """
        if self.index is None:
            raise ValueError("this retriever has no index: R2D2Retriever.open(INDEX), or use match()")
        if (texts is None) == (images is None):
            raise ValueError("give texts or images as queries, one and not both (r2d2 search: texts, or --image)")
        if find not in ("images", "texts"):
            raise ValueError(f"find is {find!r}; use 'images' or 'texts'")
        if top_k < 1 or candidates < 0 or (cascade is not None and cascade < 1):
            raise ValueError(
                f"top_k must be at least 1, candidates at least 0, a cascade at least 1; given: {top_k}, {candidates}, "
                f"{'none' if cascade is None else cascade}"
            )
        if min_match_probability is not None and not 0 <= min_match_probability <= 1:
            raise ValueError(f"min_match_probability is {min_match_probability}; it is a probability, from 0 to 1")
        # the ranker compares texts with pictures, not two of a kind
        stage = self.stage if candidates > 0 and (texts is None) == (find == "texts") else None
        if min_match_probability is not None:
            require_number("min_match_probability", min_match_probability, least=0, most=1)
        if min_match_probability is not None and stage is None:
            raise ValueError(
                "min_match_probability needs match probabilities: a model with a ranker, candidates above 0, and a "
                "text compared with pictures or a picture with texts"
            )
        if score is not None and stage is None:
            raise ValueError(
                "a score is of both stages: it needs a model with a ranker, candidates above 0, and a text compared "
                "with pictures or a picture with texts"
            )
        if self.tokens is not None and (texts is None) == (find == "images"):
            raise ValueError("this model compares tokens of a text with those of a picture, not two of a kind")
        wanted = max(top_k, 0 if stage is None else candidates)
        queries: EncodedTexts | EncodedImages
        pil_images: Sequence[Image.Image | None]
        if texts is not None:
            names = checked_texts(texts)
            pil_images = [None] * len(names)
            queries = encode_texts(self.model, self.processor, names, keep_states=stage is not None)
        else:
            assert images is not None
            names, opened = _opened(images, self.processor)
            pil_images = opened
            queries = encode_images(self.model, self.processor, opened, keep_states=stage is not None)
        found = self._nearest(self.index, queries, wanted, find)
        combined = None if stage is None else self._score(score)
        ranked: list[Ranked] = [{} for _ in names]
        if stage is not None and combined is not None:
            chosen = [rows[:candidates] for rows, _ in found]
            if isinstance(queries, EncodedTexts):
                ranked = stage.images(queries, chosen, cascade, found, combined)
            else:
                ranked = stage.captions(queries.states, chosen, cascade, found, combined)
        results = []
        for name, image, (rows, cosine), own in zip(names, pil_images, found, ranked, strict=True):
            scored = _scored(rows, cosine, own, combined)
            hits = self._hits(self.index, scored, find, top_k, min_match_probability)
            results.append(SearchResult(name, hits, image))
        return results

    def match(
        self,
        images: ImageQuery | Sequence[ImageQuery],
        texts: str | Sequence[str],
        score: ScoreRule | None = None,
    ) -> MatchResult:
        """Match probability, cosine and score of every picture with every text; needs no index.

        Args:
            images: one or several.
            texts: one or several.
            score: as in `search`.

        Raises:
            ValueError: a model without a ranker, an empty text, an unknown score.
            ImageReadError: a picture that cannot be read.
        """
        require_ranker(self.model.config)
        assert self.ranker is not None
        texts = checked_texts(texts)
        _, pil_images = _opened(images, self.processor)
        encoded_texts = encode_texts(self.model, self.processor, texts)
        encoded_images = encode_images(self.model, self.processor, pil_images)
        image_index = torch.arange(len(pil_images)).repeat_interleave(len(texts))
        text_index = torch.arange(len(texts)).repeat(len(pil_images))
        log_odds = self.ranker.match_log_odds(encoded_texts, encoded_images, text_index, image_index)
        log_odds = log_odds.view(len(pil_images), len(texts))
        cosine = (encoded_images.embeds @ encoded_texts.embeds.t()).cpu()
        raw = log_odds.sigmoid()
        return MatchResult(self._calibrated(log_odds, cosine), raw, cosine, self._score(score)(cosine, log_odds))

    def heat_map(self, image: ImageQuery, text: str, word: str | None = None):
        """Where in the picture the text-image encoder looks for each word; see `heatmap.heat_map`."""
        from .heatmap import heat_map

        return heat_map(self.model, self.processor, image, text, word)

    # -- stages ---------------------------------------------------------------------------------

    def _nearest(
        self, index: ImageIndex, queries: EncodedTexts | EncodedImages, count: int, find: str
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each query rows and exact similarities, best first."""
        if find == "texts" and not index.texts[0]:
            raise ValueError(
                f"{index.root} holds no captions to find: index JSON lines or CSV with a text column, or a "
                "folder with captions.txt"
            )
        similarity: np.ndarray | None = None
        found: Iterable[np.ndarray]
        cosines: Iterable[np.ndarray]
        embeds = queries.embeds.float().cpu().numpy()
        if self.tokens is not None and isinstance(queries, EncodedTexts):  # two of a kind were refused
            similarity = self.tokens.images(queries)
        elif self.tokens is not None and isinstance(queries, EncodedImages):
            similarity = self.tokens.captions(queries)
        elif find == "texts":
            similarity = embeds @ index.texts[2].T
        if similarity is not None:
            count = min(count, similarity.shape[1])
            found = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
            cosines = np.take_along_axis(similarity, found, axis=1)
        else:
            assert self.vectors is not None
            found = self.vectors.search(embeds, count)
            cosines = [index.embeds(rows) @ query for rows, query in zip(found, embeds, strict=True)]
        sorted_found = []
        for rows, cosine in zip(found, cosines, strict=True):
            order = np.lexsort((rows, -cosine))[:count]  # ties in the order of the index
            sorted_found.append((rows[order], cosine[order]))
        return sorted_found

    def _score(self, rule: ScoreRule | None) -> TwoStageScore:
        """The score that orders candidates."""
        return TwoStageScore.of(self.model, rule or self.rule, self.calibration)

    def _calibrated(self, log_odds: Tensor, cosine: Tensor) -> Tensor:
        """Match probabilities as they are shown, float32."""
        if self.calibration is None:
            return log_odds.sigmoid().float()
        return self.calibration.of_log_odds(log_odds, cosine / self.model.bounded_temperature().item())

    def _hits(
        self, index: ImageIndex, scored: list["_Scored"], find: str, top_k: int, minimum: float | None
    ) -> list[SearchHit]:
        """The hits of one query."""
        hits: list[SearchHit] = []
        ranked = [each for each in scored if each.log_odds is not None]
        log_odds = torch.tensor([each.log_odds for each in ranked], dtype=torch.float64)
        probabilities = self._calibrated(log_odds, torch.tensor([each.cosine for each in ranked])).tolist()
        known = {each.row: both for each, *both in zip(ranked, log_odds.sigmoid().tolist(), probabilities, strict=True)}
        for each in scored:
            raw, shown = known.get(each.row, (None, None))
            if minimum is not None and (shown is None or shown < minimum):
                continue
            text, row = None, each.row
            if find == "texts":
                captions, owners, _ = index.texts
                text, row = captions[row], owners[row][0]
            image = index.image(row)
            hits.append(
                SearchHit(
                    rank=len(hits) + 1,
                    id=image.id,
                    path=image.path,
                    score=each.score,
                    match_probability=shown,
                    cosine=each.cosine,
                    raw_match_probability=raw if self.calibration is not None else None,
                    text=text,
                    problem=image.state(),
                    metadata=None if image.metadata is None else json.loads(image.metadata),
                    image=image,
                )
            )
            if len(hits) == top_k:
                break
        return hits


@dataclass(frozen=True)
class _Scored:
    """A row of the index with its score for a query; log_odds None where the ranker was not asked about it."""

    score: float
    row: int
    cosine: float
    log_odds: float | None


def _scored(rows: np.ndarray, cosine: np.ndarray, ranked: Ranked, score: TwoStageScore | None) -> list[_Scored]:
    """What was found for one query, best first: candidates by both encoders, by one, and the rest by cosine."""
    similarities = torch.from_numpy(cosine).double()
    known = [ranked.get(row, (None, 0)) for row in rows.tolist()]
    scores = similarities
    if ranked and score is not None:
        encoders = torch.tensor([count for _, count in known])
        log_odds = torch.tensor([0.0 if odds is None else odds for odds, _ in known], dtype=torch.float64)
        unranked = score.pre_ranking(similarities)
        scores = in_tiers(torch.where(encoders > 0, score(similarities, log_odds), unranked), 2 - encoders)
    order = scores.argsort(descending=True, stable=True).tolist()  # ties stay in the order of their cosine
    return [_Scored(float(scores[i]), int(rows[i]), float(cosine[i]), known[i][0]) for i in order]


def checked_texts(texts: str | Sequence[str]) -> list[str]:
    """Queries as a list.

    Raises:
        ValueError: none, or one without any character to search for.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise ValueError("there is no query")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise TypeError(f"query {number} is a {type(text).__name__}, not a string")
        if not text.strip():
            raise ValueError(f"query {number} is empty, or only spaces: there is nothing to search for")
    return texts


def _vectors_of(index: ImageIndex, effort: int | None = None) -> VectorSearch:
    """What the index says: its FAISS file, or exact search in its embeddings."""
    kind = index.manifest.vectors["kind"]
    if kind == "flat":
        return FaissVectors(build_vectors(index.all_embeds(), index.manifest.dimension, len(index), kind), kind)
    path = index.root / index.manifest.vectors["file"]
    return FaissVectors.load(path, kind, effort, index.vectors, index.slots)


def _opened(images: ImageQuery | Sequence[ImageQuery], processor: Any) -> tuple[list[str], list[Image.Image]]:
    images = [images] if isinstance(images, str | PathLike | Image.Image) else list(images)
    if not images:
        raise ValueError("there is no query")
    names = [str(i) if isinstance(i, str | PathLike) else getattr(i, "filename", "") or "picture" for i in images]
    return names, [open_image(image, **opening_of(processor)) for image in images]


__all__ = ["MatchResult", "CollectionImage", "R2D2Retriever", "load_model"]
