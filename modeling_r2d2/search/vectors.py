"""Nearest embeddings by FAISS: exact for small collections, a graph or inverted lists for large ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .manifest import IndexFileError

Kind = Literal["flat", "hnsw", "ivf"]
#: Up to how many pictures each kind is chosen; beyond the last, inverted lists.
LARGEST_FLAT, LARGEST_GRAPH = 50_000, 5_000_000
#: How much wider than the sample's range the 8-bit range of each dimension is, for vectors that come later.
_MARGIN = 0.1
#: Of inverted lists, unless told otherwise: vectors compared for each one that is asked for, and at least.
_SEEN_FOR_EACH, _LEAST_SEEN = 10, 2048
_PIECE = 1 << 20


class VectorSearch(Protocol):
    """What the retriever needs of a vector index."""

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """For each of the queries (Q, D) rows in any order, its `count` nearest among them, or all there are."""


def choose_kind(count: int) -> Kind:
    """flat up to 50,000 pictures (exact), hnsw up to 5 million, ivf beyond (less memory)."""
    return "flat" if count <= LARGEST_FLAT else "hnsw" if count <= LARGEST_GRAPH else "ivf"


def require_faiss() -> Any:
    """The library, or an error that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("searching an index needs FAISS: pip install 'modeling-r2d2[retrieval]'") from error
    return faiss


def build_vectors(
    embeds: Iterable[np.ndarray],
    dimension: int,
    count: int,
    kind: Kind,
    neighbours: int = 32,
    construction: int = 120,
    lists: int | None = None,
    sample: int = 100_000,
) -> Any:
    """A FAISS index over embeddings (I, D) that come piece by piece, in their order.

    Vectors are unit length, so their order by L2 distance is their order by cosine. The graph keeps vectors as 8-bit
    numbers, inverted lists too; the retriever computes the cosines of what is found from the exact embeddings.

    Args:
        neighbours: M of HNSW.
        construction: efConstruction of HNSW.
        lists: of IVF, default 4 √count.
        sample: vectors from which 8-bit ranges and the lists' centres are learned.
    """
    faiss = require_faiss()
    if kind == "flat":
        index = faiss.IndexFlatIP(dimension)
    elif kind == "hnsw":
        index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, neighbours, faiss.METRIC_L2)
        index.hnsw.efConstruction = construction
        faiss.downcast_index(index.storage).sq.rangestat_arg = _MARGIN
    elif kind == "ivf":
        lists = lists or max(1, min(round(4 * count**0.5), count))
        centers = faiss.IndexFlatL2(dimension)
        index = faiss.IndexIVFScalarQuantizer(centers, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_L2)
        centers.this.disown()  # owned by the index from here on
        index.own_fields = True
        index.sq.rangestat_arg = _MARGIN
        index.cp.min_points_per_centroid = 1  # few vectors are all compared, whatever the centres: no warning
    else:
        raise ValueError(f"vector index {kind!r}: use 'flat', 'hnsw' or 'ivf'")
    pieces = list(embeds)  # memory-mapped views: nothing is read yet
    if not index.is_trained:
        index.train(_sample(pieces, sample))
    for piece in pieces:
        index.add(np.ascontiguousarray(piece, dtype=np.float32))
    return index


def _sample(pieces: list[np.ndarray], size: int) -> np.ndarray:
    """Evenly spaced vectors of all pieces."""
    starts = np.cumsum([0, *map(len, pieces)])
    rows = np.linspace(0, starts[-1] - 1, min(size, starts[-1])).round().astype(np.int64)
    owners = np.searchsorted(starts, rows, side="right") - 1
    return np.concatenate([pieces[n][rows[owners == n] - starts[n]] for n in np.unique(owners)]).astype(np.float32)


class FaissVectors:
    """Search in a FAISS index whose row i is picture i, or `slots[i]` where some were removed.

    Args:
        effort: HNSW's efSearch or the share of IVF's lists that are visited, in percent. More finds more of the true
            neighbours and takes longer. Default: 2 k, at least 256; 3 %, and at least so many lists as hold, on
            average, 10 k vectors and 2,048. As many vectors as are asked for are found with any effort.
        slots: rows of the index that are searched, ascending; None: all.
    """

    def __init__(self, index: Any, kind: Kind, effort: int | None = None, slots: np.ndarray | None = None):
        self.index, self.kind, self.effort, self.slots = index, kind, effort, slots
        self.count, self._allowed = index.ntotal, {}
        if slots is not None:
            self.count = len(slots)
            bits = np.zeros(index.ntotal, bool)
            bits[slots] = True
            self._bits = np.packbits(bits, bitorder="little")  # the selector does not keep it
            self._allowed = {"sel": require_faiss().IDSelectorBitmap(self._bits)}

    @classmethod
    def load(
        cls, path: Path, kind: Kind, effort: int | None = None, data: Any = None, slots: np.ndarray | None = None
    ) -> "FaissVectors":
        """From a file of `faiss.write_index`, or from its content as a buffer, where another file may be there by now.

        Raises:
            IndexFileError: it cannot be read.
        """
        faiss = require_faiss()
        try:
            if data is None:
                return cls(faiss.read_index(str(path)), kind, effort, slots)
            import pyarrow as pa

            reader = faiss.PyCallbackIOReader(pa.BufferReader(data).read, _PIECE)
            return cls(faiss.read_index(reader), kind, effort, slots)
        except RuntimeError as error:  # of any error in a file, with FAISS's own source lines in its message
            raise IndexFileError(f"{path} cannot be read as a vector index; index anew") from error

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Rows of the `count` nearest of each query (Q, D) float32, and, unless the kind is flat, a quarter more: 8-bit
        vectors are too coarse to tell the last of them apart, and the exact cosines are computed anyway."""
        count = min(count if self.kind == "flat" else count + count // 4 + 8, self.count)
        if count == 0:
            return [np.empty(0, np.int64) for _ in queries]
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        found = self._in_lists(queries, count) if self.kind == "ivf" else self._in_one(queries, count)
        return list(found if self.slots is None else np.searchsorted(self.slots, found))

    def _in_one(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Rows of the index of the `count` nearest of each query, from the graph or from all."""
        faiss = require_faiss()
        exact = faiss.SearchParameters(**self._allowed)
        if self.kind == "flat":
            return self.index.search(queries, count, params=exact)[1]
        wide = max(self.effort or max(256, 2 * count), count)
        rows = self.index.search(queries, count, params=faiss.SearchParametersHNSW(efSearch=wide, **self._allowed))[1]
        if (short := np.flatnonzero((rows < 0).any(axis=1))).size:
            # many equal vectors make islands that the graph's links do not leave: compare with all vectors
            rows[short] = faiss.downcast_index(self.index.storage).search(queries[short], count, params=exact)[1]
        return rows

    def _in_lists(self, queries: np.ndarray, count: int) -> np.ndarray:
        """Rows of the `count` nearest of each query; more lists are visited where these hold fewer."""
        lists, total = self.index.nlist, self.count
        share = lists * (self.effort or 3) / 100
        if self.effort is None:
            share = max(share, lists * max(_SEEN_FOR_EACH * count, _LEAST_SEEN) / total)
        probes = min(max(1, round(share)), lists)
        found = np.full((len(queries), count), -1, np.int64)
        short = np.arange(len(queries))
        while short.size:
            parameters = require_faiss().SearchParametersIVF(nprobe=probes, **self._allowed)
            found[short] = self.index.search(queries[short], count, params=parameters)[1]
            short = short[(found[short] < 0).any(axis=1)] if probes < lists else short[:0]
            probes = min(2 * probes, lists)
        return found
