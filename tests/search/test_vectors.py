"""Vector indexes against exact search in numpy, and Milvus against FAISS."""

import json

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.search import ImageIndex, IndexFileError, OtherModelError, publishing
from modeling_r2d2.search.building import IndexBuilder
from modeling_r2d2.search.milvus import MilvusVectors
from modeling_r2d2.search.vectors import FaissVectors, build_vectors, choose_kind
from tests.search.conftest import NAMES, save_images

pytest.importorskip("faiss")  # of the extra [retrieval]


@pytest.fixture(scope="module")
def vectors():
    """Unit vectors around 60 centres, in three pieces, and queries beside some of them."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(60, 32))
    near = centers[rng.integers(60, size=3040)] + 0.4 * rng.normal(size=(3040, 32))
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
    assert [len(rows) for rows in loaded.search(queries[:2], 10_000)] == [3000, 3000]


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("copies", [0, 0.5])
def test_as_many_as_asked_for_of_small_sets(vectors, kind, copies, capfd):
    """Sizes 1 to 2,500, k 1 to 128, also where half of the pictures are copies of one."""
    gallery, queries = vectors
    for size in (1, 2, 5, 10, 40, 129, 600, 2500):
        part = gallery[:size].copy()
        part[: int(copies * size)] = part[0]
        index = FaissVectors(build_vectors([part], 32, size, kind), kind)
        cosines = queries @ part.T
        for count in (1, 10, 50, 128, 5000):
            found = index.search(queries, count)
            recalls = []
            for rows, cosine in zip(found, cosines, strict=True):
                assert len(set(rows.tolist())) == len(rows) >= min(count, size)
                assert rows.min() >= 0
                nearest = -np.sort(-cosine)[:count]
                recalls.append(np.isclose(-np.sort(-cosine[rows])[:count], nearest, atol=1e-6).mean())
            assert np.mean(recalls) > (0.98 if copies == 0 or kind == "ivf" else 0.8)
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_little_effort_still_finds_as_many(vectors, kind):
    gallery, queries = vectors
    index = build_vectors([gallery], 32, len(gallery), kind)
    assert {len(rows) for rows in FaissVectors(index, kind, effort=1).search(queries, 500)} == {500 + 125 + 8}


def test_a_broken_vector_file_is_named(vectors, tmp_path):
    (tmp_path / "vectors.faiss").write_bytes(b"IwSQ" + bytes(40))
    with pytest.raises(IndexFileError, match=r"vectors\.faiss cannot be read"):
        FaissVectors.load(tmp_path / "vectors.faiss", "ivf")
    with pytest.raises(IndexFileError, match=r"vectors\.faiss cannot be read"):
        FaissVectors.load(tmp_path / "vectors.faiss", "ivf", data=(tmp_path / "vectors.faiss").read_bytes())


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
def test_the_graph_follows_the_images(kind, grows, monkeypatch, model, processor, images, tmp_path):
    """Grown by what is added (or built again, if it is small), kept when pictures go: row i is row i of the files."""
    monkeypatch.setattr(publishing, "GROWS_FROM", grows)

    def check():
        index = ImageIndex(tmp_path / "index")
        embeds = np.concatenate(list(index.all_embeds()))
        retriever = R2D2Retriever.open(tmp_path / "index", model, processor, effort=100)
        for row in range(len(index)):
            (found,) = retriever.vectors.search(embeds[row : row + 1], 3)
            assert set(np.argsort(-(embeds @ embeds[row]))[:3]) <= set(found)
        faiss_index = retriever.vectors.index
        slots = index.slots if index.slots is not None else np.arange(len(index))
        assert faiss_index.ntotal == index.manifest.rows
        if kind == "ivf":
            faiss_index.make_direct_map()
        kept = np.stack([faiss_index.reconstruct(row) for row in slots.tolist()])
        distance = np.linalg.norm(kept[:, None] - embeds[None], axis=2)
        # ranges learned from so few do not hold what is added
        sure = len(index) if grows else int((slots < 9).sum())
        assert distance.argmin(axis=1).tolist()[:sure] == list(range(len(index)))[:sure]
        return index

    def builder():
        return IndexBuilder(model, processor, tmp_path / "index", vectors=kind, batch_size=2, part_size=4)

    builder().add(images)
    check()
    save_images(images, ["x.png", "y.png"], first_seed=20)
    builder().add(images)
    assert len(check()) == 11
    builder().remove(["a.png", "x.png"])
    assert len(check()) == 9
    assert len(list((tmp_path / "index").glob("vectors.*"))) == 1
    R2D2Retriever.build(images, model, tmp_path / "index", processor, vectors="flat", prune=True)
    assert ImageIndex(tmp_path / "index").manifest.vectors == {"kind": "flat"}


def test_milvus_and_faiss_agree(model, processor, images, tmp_path):
    pytest.importorskip("milvus_lite")
    builder = IndexBuilder(model, processor, tmp_path / "index", batch_size=4, part_size=4)
    builder.add(images)
    milvus = MilvusVectors(str(tmp_path / "milvus.db"))
    index = ImageIndex(tmp_path / "index")
    assert milvus.synchronise(index) == (9, 0)
    assert milvus.synchronise(index) == (0, 0)

    def agree():
        index = ImageIndex(tmp_path / "index")
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
    save_images(images, ["new.png"], first_seed=25)
    (images / "a.png").unlink()
    builder.add(images)
    assert milvus.synchronise(ImageIndex(tmp_path / "index")) == (1, 1)
    assert agree() == 9
    milvus.client.close()


#: Of users' tables and file systems: what would mean something in an expression of Milvus, and what is long.
AWKWARD = ['a"b', "a'b", "a\\b", "a\\", "a\nb\r\tc", "中文 🐶", "' in ['x'] or id != '", "x" * 300, "图" * 100, "{}"]


@pytest.fixture
def milvus(tmp_path):
    pytest.importorskip("milvus_lite")
    vectors = MilvusVectors(str(tmp_path / "milvus.db"))
    yield vectors
    vectors.client.close()


def test_milvus_takes_any_id_and_deletes_no_other(model, processor, images, milvus, tmp_path):
    rows = [{"image": name, "image_id": id} for name, id in zip(2 * NAMES, AWKWARD, strict=False)]
    listed = images / "list.jsonl"
    listed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    builder = IndexBuilder(model, processor, tmp_path / "index", batch_size=4)
    assert builder.add(listed).images == len(AWKWARD)
    assert milvus.synchronise(ImageIndex(tmp_path / "index")) == (len(AWKWARD), 0)
    left = list(AWKWARD)
    for gone in (AWKWARD[0], AWKWARD[6], AWKWARD[4]):
        left.remove(gone)
        builder.remove([gone])
        index = ImageIndex(tmp_path / "index")
        assert milvus.synchronise(index) == (0, 1)
        assert milvus.synchronise(index) == (0, 0)
        found = R2D2Retriever(model, processor, index, vectors=milvus.of(index)).search("猫", top_k=99, candidates=0)
        assert {hit.id for hit in found[0].hits} == set(left)


def test_milvus_deletes_many(model, processor, images, milvus, monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_r2d2.search.milvus._BATCH", 2)
    builder = IndexBuilder(model, processor, tmp_path / "index", batch_size=4)
    builder.add(images)
    assert milvus.synchronise(ImageIndex(tmp_path / "index")) == (9, 0)
    builder.remove(NAMES[:7])
    assert milvus.synchronise(ImageIndex(tmp_path / "index")) == (0, 7)


def test_milvus_refuses_vectors_of_another_model(model, processor, images, milvus, tmp_path):
    from pymilvus import DataType, MilvusClient

    from tests.helpers import tiny_model

    index = ImageIndex(_made(model, processor, images, tmp_path / "index"))
    with pytest.raises(ValueError, match="no collection 'r2d2'"):
        milvus.of(index)
    milvus.synchronise(index)
    torch.manual_seed(11)
    other = ImageIndex(_made(tiny_model(), processor, images, tmp_path / "other"))
    for call in (milvus.synchronise, milvus.of):
        with pytest.raises(OtherModelError, match="'r2d2' was made by another model"):
            call(other)
    assert milvus.synchronise(index) == (0, 0)
    schema = MilvusClient.create_schema(auto_id=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=64)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=index.manifest.dimension)
    milvus.client.create_collection("somebodys", schema=schema)
    somebodys = MilvusVectors("", collection="somebodys", client=milvus.client)
    with pytest.raises(OtherModelError, match="without a model's fingerprint"):
        somebodys.synchronise(index)


def _made(model, processor, images, root):
    IndexBuilder(model, processor, root, batch_size=4).add(images)
    return root
