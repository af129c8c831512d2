"""Two-stage search: an index on disk, a fast exact ranker, calibrated match probabilities.

FAISS and pyarrow are of the extra `[retrieval]`, Milvus of `[milvus]`; both are imported when they are needed.
"""

from ..figures.reliability import reliability_plot
from ..inference.calibration import Calibration, fit_calibration, reliability, threshold_for
from ..inference.identity import OtherModelError
from ..inference.ranker import FastRanker, RankedTexts
from ..processing.files.locking import IndexLockedError
from .cache import CacheOptions
from .images import CollectionImage, list_images
from .manifest import IndexFileError
from .results import SearchHit, SearchResult, to_csv, to_json, write_sheet
from .retriever import MatchResult, R2D2Retriever
from .store import ImageIndex

__all__ = [
    "CacheOptions",
    "Calibration",
    "FastRanker",
    "IndexFileError",
    "IndexLockedError",
    "MatchResult",
    "OtherModelError",
    "CollectionImage",
    "ImageIndex",
    "R2D2Retriever",
    "RankedTexts",
    "SearchHit",
    "SearchResult",
    "fit_calibration",
    "list_images",
    "reliability",
    "reliability_plot",
    "threshold_for",
    "to_csv",
    "to_json",
    "write_sheet",
]
