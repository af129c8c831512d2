"""Nothing in the folder of an index that the index has not written is removed, replaced or shadowed."""

import os
import shutil
import stat

import pytest

from modeling_r2d2.search import ImageIndex, IndexFileError
from modeling_r2d2.search.building import IndexBuilder
from modeling_r2d2.search.manifest import Manifest
from modeling_r2d2.search.ownership import BUILDING
from tests.helpers import die, killed
from tests.search.conftest import save_images

FOREIGN = {
    "vectors.npy": b"1",
    "building": b"2",
    "unreadable.txt": b"3",
    "data/photo.jpg": b"4",
    "data/00000.tar": b"5",
    "data/00000001.json": b"{}",
    "data/00000002.rows": b"6",
    "data/.hidden": b"7",
    ".manifest.json.12.aside": b"8",
    "vectors.000009.faiss.bak": b"9",
}


@pytest.fixture
def make(model, processor, tmp_path):
    """A builder of small parts in a folder."""
    return lambda name="index", **options: IndexBuilder(
        model, processor, tmp_path / name, **{"batch_size": 2, "part_size": 2, **options}
    )


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def held(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", [*FOREIGN, "notes.txt", "unreadable.jsonl", "config.json"])
def test_folder_of_something_else_is_refused_and_left_as_it_is(make, images, tmp_path, name):
    put(tmp_path / "index", {name: b"mine"})
    with pytest.raises(FileExistsError, match="holds no index, but .*: an index needs a folder of its own"):
        make().add(images)
    assert held(tmp_path / "index") == {name: b"mine"}


def test_output_that_is_or_contains_its_source(make, images, tmp_path):
    before = held(images)
    for root in (images, tmp_path):
        with pytest.raises(FileExistsError, match="holds no index"):
            make(root).add(images)
    assert held(images) == before
    outcome = make(images / "index").add(images)  # within it there is room for one
    assert outcome.images == make(images / "index").add(images).unchanged == 9


def test_torn_or_foreign_manifest_is_refused(make, images, tmp_path):
    put(tmp_path / "index", {"manifest.json": b'{"name": "web app"}', "data/00000000.rows": b"mine"})
    before = held(tmp_path / "index")
    with pytest.raises(IndexFileError, match="holds no index: its manifest.json is of something else"):
        make().add(images)
    assert held(tmp_path / "index") == before


def test_files_that_came_later_survive_every_change(make, images, tmp_path):
    root = tmp_path / "index"
    make(vectors="hnsw").add(save_images(tmp_path / "two", ["1.png", "2.png"], 50))
    put(root, FOREIGN)
    make(vectors="hnsw").add(images)
    make(vectors="flat").add(images, prune=True)
    make().remove(["a.png"])
    found = held(root)
    assert {name: found.get(name) for name in FOREIGN} == FOREIGN
    assert len(ImageIndex(root)) == 10
    own = {name for name in found if name.startswith("data/0") and name not in FOREIGN}
    assert own == set(Manifest.load(root).files)
    assert not [name for name in found if name.endswith(".faiss")]


def test_data_folder_that_leads_elsewhere(make, images, tmp_path):
    """A link in the place of the data brings nobody's files into danger."""
    make().add(images)
    root, elsewhere = tmp_path / "index", tmp_path / "elsewhere"
    (root / "data").rename(elsewhere)
    (root / "data").symlink_to(elsewhere)
    put(elsewhere, {"photo.jpg": b"mine", "00000099.tar": b"mine"})
    make().remove(["a.png", "e.PNG"])
    assert (elsewhere / "photo.jpg").read_bytes() == (elsewhere / "00000099.tar").read_bytes() == b"mine"
    assert len(ImageIndex(root)) == 7


@pytest.mark.parametrize("name", ["unreadable.jsonl", "vectors.000002.faiss"])
def test_file_in_the_place_of_one_of_ours_is_named(make, images, tmp_path, name):
    root = tmp_path / "index"
    make().add(save_images(tmp_path / "two", ["1.png", "2.png"], 50))
    (root / name).unlink(missing_ok=True)
    put(root, {name: b"mine"})
    before = held(root)
    for change in (lambda: make().add(images), lambda: make().remove(["1.png"])):
        with pytest.raises(FileExistsError, match=f"{name} has .* and is not the index's: move it away"):
            change()
    assert held(root) == before


@pytest.mark.parametrize("moment", ["part", "report", "clearing"])
def test_what_a_killed_change_leaves_is_cleared_by_the_next(make, images, tmp_path, monkeypatch, moment):
    from modeling_r2d2.search import building, ownership

    root = tmp_path / "index"
    make(vectors="hnsw").add(save_images(tmp_path / "two", ["1.png", "2.png"], 50))
    put(root, FOREIGN)

    write = building.write_part
    places = {
        "part": (building, "write_part", lambda path, part: die() if "00000005" in str(path) else write(path, part)),
        "report": (building.IndexBuilder, "_write_report", die),  # the manifest is there, the old files too
        "clearing": (ownership, "clean_leftovers", lambda folder, alone: die() if folder.name == "data" else []),
    }

    def change():
        monkeypatch.setattr(*places[moment])
        make(vectors="hnsw").add(images, prune=True)

    assert killed(change)
    assert (root / BUILDING).exists()
    make(vectors="hnsw").add(images, prune=True)
    found = held(root)
    assert {name: found.pop(name) for name in FOREIGN} == FOREIGN
    files = Manifest.load(root).files.keys()
    assert found.keys() == files | {".lock", "manifest.json", "unreadable.jsonl"}


def test_killed_at_any_file_that_takes_its_place(make, tmp_path, monkeypatch):
    """The next run leaves nothing of it, not even where a change was whole but for its last file."""
    images, root, replace = save_images(tmp_path / "two", ["1.png", "2.png"]), tmp_path / "index", os.replace
    for step in range(20):
        shutil.rmtree(root, ignore_errors=True)

        def change(step=step):
            left = iter(range(step))
            monkeypatch.setattr(os, "replace", lambda *names: die() if next(left, None) is None else replace(*names))
            make(vectors="hnsw").add(images)

        was_killed = killed(change)
        make(vectors="hnsw").add(images)
        assert not [name for name in held(root) if "/." in f"/{name}" and name != ".lock"]
        if not was_killed:
            break
    assert 3 < step < 19


def test_every_file_is_readable_by_whom_umask_allows(make, images, tmp_path, model_folder):
    from modeling_r2d2.search.cache import CacheOptions

    before = os.umask(0o022)
    try:
        make(cache=CacheOptions("states"), vectors="hnsw").add(images)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "index").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} >= {".embeds", ".states", ".rows", ".json", ".faiss"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
