"""Vector indexes against exact search in numpy, and Milvus against FAISS."""

import numpy as np
import pytest

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.retrieval import PictureIndex, building
from modeling_r2d2.retrieval.building import IndexBuilder
from modeling_r2d2.retrieval.milvus import MilvusVectors
from modeling_r2d2.retrieval.vectors import FaissVectors, build_vectors, choose_kind
from tests.retrieval.conftest import save_pictures

pytest.importorskip("faiss")  # of the extra [retrieval]


@pytest.fixture(scope="module")
def vectors():
    """Unit vectors around 60 centres, in three pieces, and queries beside some of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 32))
    near = centres[rng.integers(60, size=3040)] + 0.4 * rng.normal(size=(3040, 32))
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    return near[40:], near[:40]


@pytest.mark.parametrize(("kind", "wanted"), [("flat", 1.0), ("hnsw", 0.98), ("ivf", 0.95)])
def test_recall(vectors, kind, wanted, tmp_path):
    import faiss

    gallery, queries = vectors
    exact = np.argsort(-(queries @ gallery.T), axis=1)[:, :20]
    index = build_vectors(np.array_split(gallery, 3), 32, len(gallery), kind, lists=30)
    faiss.write_index(index, str(tmp_path / "vectors"))
    loaded = FaissVectors.load(tmp_path / "vectors", kind, effort=40)
    found = loaded.search(queries, 20)
    recall = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(exact.tolist(), found, strict=True)])
    assert recall >= wanted
    assert [len(rows) for rows in loaded.search(queries[:2], 10_000)] == [3000, 3000] or kind == "ivf"


def test_more_effort_finds_more(vectors):
    gallery, queries = vectors
    exact = np.argsort(-(queries @ gallery.T), axis=1)[:, :20]
    index = build_vectors([gallery], 32, len(gallery), "ivf", lists=100)

    def recall(effort):
        found = FaissVectors(index, "ivf", effort).search(queries, 20)
        return sum(len(set(a) & set(b)) for a, b in zip(exact.tolist(), found, strict=True))

    assert recall(1) < recall(20) <= recall(100) <= 20 * 40


def test_kind_by_size():
    assert [choose_kind(count) for count in (1, 50_000, 50_001, 5_000_000, 5_000_001)] == [
        "flat",
        "flat",
        "hnsw",
        "hnsw",
        "ivf",
    ]
    with pytest.raises(ValueError, match="'flat', 'hnsw' or 'ivf'"):
        build_vectors([], 4, 0, "tree")


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("grows", [0, 10_000])
def test_the_graph_follows_the_pictures(kind, grows, monkeypatch, model, processor, pictures, tmp_path):
    """Grown by what is added (or built anew, if it is small) and built anew when pictures go: row i is picture i."""
    monkeypatch.setattr(building, "GROWS_FROM", grows)

    def check():
        index = PictureIndex(tmp_path / "index")
        embeds = np.concatenate(list(index.all_embeds()))
        retriever = R2D2Retriever.open(tmp_path / "index", model, processor, effort=100)
        for row in range(len(index)):
            (found,) = retriever.vectors.search(embeds[row : row + 1], 3)
            assert set(np.argsort(-(embeds @ embeds[row]))[:3]) <= set(found)
        faiss_index = retriever.vectors.index
        assert faiss_index.ntotal == len(index)
        if kind == "ivf":
            faiss_index.make_direct_map()
        kept = np.stack([faiss_index.reconstruct(row) for row in range(len(index))])
        distance = np.linalg.norm(kept[:, None] - embeds[None], axis=2)
        sure = len(index) if grows else 9  # ranges learned from so few do not hold what is added
        assert distance.argmin(axis=1).tolist()[:sure] == list(range(len(index)))[:sure]
        return index

    def builder():
        return IndexBuilder(model, processor, tmp_path / "index", vectors=kind, batch_size=2, shard_size=4)

    builder().add(pictures)
    check()
    save_pictures(pictures, ["x.png", "y.png"], first_seed=20)
    builder().add(pictures)
    assert len(check()) == 11
    builder().remove(["a.png", "x.png"])
    assert len(check()) == 9
    assert len(list((tmp_path / "index").glob("vectors.*"))) == 1
    R2D2Retriever.build(pictures, model, tmp_path / "index", processor, vectors="flat", prune=True)
    assert PictureIndex(tmp_path / "index").manifest.vectors == {"kind": "flat"}


def test_milvus_and_faiss_agree(model, processor, pictures, tmp_path):
    pytest.importorskip("milvus_lite")
    builder = IndexBuilder(model, processor, tmp_path / "index", batch_size=4, shard_size=4)
    builder.add(pictures)
    milvus = MilvusVectors(str(tmp_path / "milvus.db"))
    index = PictureIndex(tmp_path / "index")
    assert milvus.synchronise(index) == (9, 0)
    assert milvus.synchronise(index) == (0, 0)

    def agree():
        index = PictureIndex(tmp_path / "index")
        by_faiss = R2D2Retriever(model, processor, index)
        by_milvus = R2D2Retriever(model, processor, index, vectors=milvus.of(index))
        for candidates in (0, 3):
            results = [
                each.search(["一只猫", "小船"], top_k=5, candidates=candidates) for each in (by_faiss, by_milvus)
            ]
            assert [result.to_dict() for result in results[0]] == [result.to_dict() for result in results[1]]
        return len(index)

    assert agree() == 9
    builder.remove(["a.png"])
    save_pictures(pictures, ["new.png"], first_seed=25)
    (pictures / "a.png").unlink()
    builder.add(pictures)
    assert milvus.synchronise(PictureIndex(tmp_path / "index")) == (1, 1)
    assert agree() == 9
    milvus.client.close()
