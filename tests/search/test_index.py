"""The index on disk: whole or not at all, resumed after a kill, changed, refused, read from every source."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch

from modeling_r2d2 import R2D2Processor, R2D2Retriever
from modeling_r2d2.inference.identity import ModelIdentity
from modeling_r2d2.processing.files.locking import only_writer
from modeling_r2d2.search import (
    CacheOptions,
    ImageIndex,
    IndexFileError,
    IndexLockedError,
    OtherModelError,
    building,
    publishing,
    store,
    to_json,
)
from modeling_r2d2.search.building import IndexBuilder
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.search.conftest import NAMES, save_images

pytest.importorskip("faiss")  # of the extra [retrieval]


@pytest.fixture
def builder(model, processor, tmp_path):
    """Makes a builder of small parts."""

    def make(root="index", **options):
        settings = {"cache": CacheOptions("states"), "batch_size": 2, "part_size": 2, **options}
        return IndexBuilder(model, processor, tmp_path / root, **settings)

    return make


def files_of(root):
    """Every file of an index but its lock, with its bytes."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def embeds_by_id(root):
    index = ImageIndex(root)
    return dict(zip(index.table.column("id").to_pylist(), np.concatenate(list(index.all_embeds())), strict=True))


def expected_embeds(model, processor, folder, names=NAMES):
    from PIL import Image

    out = {}
    for name in names:
        pixels = processor(images=[Image.open(folder / name)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out[name] = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)[0].numpy()
    return out


def test_every_image_with_its_embedding(builder, model, processor, images, tmp_path):
    outcome = builder().add(images)
    assert (outcome.images, outcome.added, outcome.unreadable) == (9, 9, [])
    found, wanted = embeds_by_id(tmp_path / "index"), expected_embeds(model, processor, images)
    assert list(found) == [
        "a.png",
        "b c/d.webp",
        "b c/狗🐶.jpg",
        "e.PNG",
        "f.bmp",
        "g.png",
        "h.gif",
        "一只 猫.png",
        "马.png",
    ]
    for name, embed in wanted.items():
        np.testing.assert_allclose(found[name], embed, atol=1e-5)


KILLED = """
import os, signal, sys
from modeling_r2d2 import R2D2Model, R2D2Processor
from modeling_r2d2.search import CacheOptions
from modeling_r2d2.search import building
folder, pictures, root, after = sys.argv[1:]
done = 0
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def progress(count, doing):
    global done
    done += count * (doing == "encoding")
    if after != "publishing" and done >= int(after):
        kill()
if after == "publishing":
    building.Manifest.save = kill
building.IndexBuilder(R2D2Model.from_pretrained(folder), R2D2Processor.from_pretrained(folder), root,
    CacheOptions("states"), vectors="hnsw", batch_size=2, part_size=2, progress=progress).add(pictures)
"""


def test_killed_twice_and_resumed_gives_the_identical_index(builder, model_folder, images, tmp_path):
    (images / "c.png").write_bytes(b"no picture")
    whole = builder("whole", vectors="hnsw").add(images)
    root = tmp_path / "killed"
    left = []
    for after in ("5", "publishing"):
        run = subprocess.run([sys.executable, "-c", KILLED, model_folder, images, root, after], capture_output=True)
        assert run.returncode == -9, run.stderr.decode()
        left.append(len(list((root / "data").glob("*.part"))))
        with pytest.raises(IndexFileError, match="run the same"):
            ImageIndex(root)
    assert left == [2, 5]
    encoded = []
    resumed = builder("killed", vectors="hnsw", progress=lambda n, doing: encoded.extend([doing] * n)).add(images)
    assert encoded.count("encoding") == 0
    assert encoded.count("resumed") == 10  # the unreadable one too
    assert resumed.resumed == 9
    assert (resumed.images, resumed.unreadable) == (whole.images, whole.unreadable)
    assert files_of(root) == files_of(tmp_path / "whole")


def test_an_interrupted_run_is_no_run_of_another_model(builder, model, processor, images, tmp_path, monkeypatch):
    def stop(count, doing):
        if doing == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder("mixed", part_size=1, progress=stop).add(images)
    torch.manual_seed(5)
    other = IndexBuilder(tiny_model(), processor, tmp_path / "mixed", batch_size=2, part_size=2)
    outcome = other.add(images)
    assert (outcome.resumed, outcome.images) == (0, 9)


def test_adding_changing_pruning_removing(builder, model, processor, images, tmp_path):
    root = tmp_path / "index"
    builder().add(images)
    before = files_of(root)
    assert builder().add(images).unchanged == 9
    assert files_of(root) == before
    save_images(images, ["new.png"], first_seed=40)
    (images / "g.png").unlink()
    tiny_image(77).save(images / "a.png")
    os.utime(images / "e.PNG")  # touched, but of the same content
    outcome = builder().add(images)
    assert (outcome.added, outcome.changed, outcome.removed, outcome.unchanged, outcome.images) == (1, 1, 0, 7, 10)
    names = [*(n for n in NAMES if n != "g.png"), "new.png"]
    found, wanted = embeds_by_id(root), expected_embeds(model, processor, images, names)
    assert set(found) == {*names, "g.png"}
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    assert builder().add(images, prune=True).removed == 1
    outcome = builder().remove(["马.png", "b c/d.webp"])
    assert (outcome.removed, outcome.images) == (2, 7)
    assert set(embeds_by_id(root)) == set(names) - {"马.png", "b c/d.webp"}
    with pytest.raises(ValueError, match="nirgends"):
        builder().remove(["a.png", "nirgends"])
    index = ImageIndex(root)
    states = index.cached(np.arange(len(index)))["states"]  # still each with its own picture
    for row, id in enumerate(index.table.column("id").to_pylist()):
        pixels = processor(images=[index.image(row).open()], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            want = model.get_image_features(pixels).last_hidden_state[0]
        torch.testing.assert_close(states[row].float(), want, atol=2e-2, rtol=1e-2, msg=id)


def test_removed_images_are_marked_and_the_files_written_again_later(builder, model, processor, images, tmp_path):
    (images / "captions.txt").write_text("".join(f"{name}#0\t图{name}\n" for name in NAMES), encoding="utf-8")
    root = tmp_path / "index"
    builder(vectors="ivf").add(images)
    whole = files_of(root)
    builder(vectors="ivf").remove(["a.png", "f.bmp"])
    index = ImageIndex(root)
    after = files_of(root)
    assert (index.manifest.rows, index.manifest.removed, len(index)) == (9, 2, 7)
    changed = {name for name in after if after[name] != whole.get(name)}
    assert changed == {"manifest.json", index.manifest.alive}
    assert whole.keys() <= after.keys()
    (images / "a.png").unlink()
    (images / "f.bmp").unlink()

    def check():
        index, fresh = ImageIndex(root), ImageIndex(tmp_path / "fresh")
        for find in ({"texts": "一只猫"}, {"images": images / "e.PNG", "find": "texts"}):
            hits = [R2D2Retriever(model, processor, each).search(**find, top_k=99)[0].hits for each in (index, fresh)]
            assert {hit.id: pytest.approx(hit.score, abs=1e-4) for hit in hits[0]} == {h.id: h.score for h in hits[1]}
        assert index.manifest.slots == index.manifest.rows or index.manifest.removed
        return index

    builder("fresh").add(images)
    check()
    builder(vectors="ivf").remove(["b c/d.webp"])  # the third of nine
    builder("fresh").remove(["b c/d.webp"])
    index = check()
    assert (index.manifest.rows, index.manifest.removed, index.manifest.alive) == (6, 0, None)
    assert not whole.keys() & {name for name in files_of(root) if name.startswith(("data/", "vectors"))}
    states = root / index.manifest.states[0]
    assert states.stat().st_size == 6 * len(whole["data/00000000.states"]) // 9


def test_a_full_disk_while_files_are_written_again_keeps_the_removal(builder, images, tmp_path, monkeypatch):
    builder().add(images)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "compacted", full)
    with pytest.raises(OSError, match="is full"):
        builder().remove(NAMES[:5])
    assert len(ImageIndex(tmp_path / "index")) == 4
    monkeypatch.undo()
    for name in NAMES[:5]:
        (images / name).unlink()
    outcome = builder().add(images)
    assert (outcome.unchanged, outcome.images, ImageIndex(tmp_path / "index").manifest.rows) == (4, 4, 4)


def test_many_changes_and_pieces_make_few_files(builder, images, tmp_path, monkeypatch):
    """What is kept in files of four records, rows in batches of three; pictures come one by one."""
    record = np.dtype([(name, kind, shape) for name, kind, shape in builder().encoder.layout])
    monkeypatch.setattr(store, "STATES_BYTES", 4 * record.itemsize)
    for place in (store, publishing, building):
        monkeypatch.setattr(place, "PIECE", 3)
    for number in range(24):
        save_images(images, [f"new{number}.png"], first_seed=100 + number)
        builder().add(images)
    builder("fresh").add(images)
    opened = [ImageIndex(tmp_path / root) for root in ("index", "fresh")]
    assert len(opened[0]) == len(opened[1]) == 33
    assert len(opened[0].manifest.tables) <= 5
    assert len(opened[0].manifest.states) == 9
    found = [dict(zip(each.column("id").to_pylist(), range(33), strict=True)) for each in opened]
    order = np.array([found[0][id] for id in found[1]])
    states = [each.cached(rows)["states"].float() for each, rows in zip(opened, (order, np.arange(33)), strict=True)]
    torch.testing.assert_close(*states, atol=1e-2, rtol=1e-2)
    ids = list(found[0])[::2]
    builder().remove(ids)
    kept = ImageIndex(tmp_path / "index")
    assert (len(kept), len(kept.manifest.states), len(kept.manifest.tables)) == (16, 4, 1)
    rows = np.array([found[0][id] for id in kept.column("id").to_pylist()])
    assert torch.equal(kept.cached(np.arange(16))["states"], opened[0].cached(rows)["states"])
    assert np.array_equal(np.concatenate(list(kept.all_embeds())), opened[0].embeds(rows))


def test_a_second_folder_with_the_same_names(builder, images, tmp_path):
    """It does not take the place of what is indexed; moved or linked, a picture is itself."""
    builder().add(images)
    before = files_of(tmp_path / "index")
    other = tmp_path / "other"
    other.mkdir()
    for seed, name in enumerate(("a.png", "e.PNG"), 90):
        tiny_image(seed).save(other / name)
    outcome = builder().add(other)
    assert (outcome.added, outcome.changed, outcome.images) == (0, 0, 9)
    assert {entry["id"] for entry in outcome.unreadable} >= {"a.png", "e.PNG"}
    assert any(f"the index holds {images / 'a.png'} by this id" in entry["reason"] for entry in outcome.unreadable)
    (tmp_path / "link").symlink_to(images)
    assert builder().add(tmp_path / "link").unchanged == 9
    assert files_of(tmp_path / "index").keys() >= before.keys() - {"unreadable.jsonl"}
    (images / "a.png").unlink()
    assert builder().add(other).changed == 1  # the place is free


def test_unreadable_images_are_skipped_listed_and_tried_again(builder, images, tmp_path):
    (images / "torn.png").write_bytes((images / "a.png").read_bytes()[:60])
    (images / "link.png").symlink_to(tmp_path / "nowhere.png")
    outcome = builder().add(images)
    assert (outcome.images, outcome.added) == (9, 9)
    assert {entry["id"] for entry in outcome.unreadable} == {"torn.png", "link.png"}
    report = (tmp_path / "index" / "unreadable.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["id"]: json.loads(line)["reason"] for line in report}.keys() == {"torn.png", "link.png"}
    tiny_image(50).save(images / "torn.png")
    outcome = builder().add(images)
    assert (outcome.added, [entry["id"] for entry in outcome.unreadable]) == (1, ["link.png"])


def test_links_loops_and_duplicates(builder, images, tmp_path):
    (images / "again").symlink_to(images, target_is_directory=True)
    outside = save_images(tmp_path / "outside", ["x.png"], first_seed=30)
    (images / "elsewhere").symlink_to(outside, target_is_directory=True)
    shutil.copy(images / "a.png", images / "copy.png")
    outcome = builder().add(images)
    assert (outcome.images, outcome.duplicates) == (11, 1)
    assert {"elsewhere/x.png", "copy.png"} < set(embeds_by_id(tmp_path / "index"))


def test_nothing_to_index(builder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no readable picture"):
        builder().add(tmp_path / "empty")
    (tmp_path / "empty" / "x.png").write_bytes(b"")
    with pytest.raises(ValueError, match="x.png"):
        builder().add(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        builder().add(tmp_path / "nowhere")
    with pytest.raises(IndexFileError, match="holds no index"):
        ImageIndex(tmp_path / "empty")


def test_two_writers(builder, images, tmp_path):
    builder().add(images)
    with only_writer(tmp_path / "index"):
        with pytest.raises(IndexLockedError, match="another process is writing"):
            builder().add(images)
        assert len(ImageIndex(tmp_path / "index")) == 9  # readers are not held up
    assert builder().add(images).unchanged == 9


def test_full_disk_leaves_the_old_index(builder, images, tmp_path, monkeypatch):
    builder().add(images)
    before = files_of(tmp_path / "index")
    save_images(images, ["n1.png", "n2.png", "n3.png"], first_seed=60)
    write, calls = building.write_part, []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(building, "write_part", fail)
    with pytest.raises(OSError, match="is full.*make room") as caught:
        builder().add(images)
    assert caught.value.errno == errno.ENOSPC
    after = files_of(tmp_path / "index")
    assert all(after[name].startswith(content) for name, content in before.items())
    assert not [name for name in after if "partial" in name]
    assert len(ImageIndex(tmp_path / "index")) == 9
    monkeypatch.undo()
    outcome = builder().add(images)
    assert (outcome.added, outcome.resumed) == (3, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(builder, images, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot be written to"):
        builder("locked/index").add(images)


def test_a_file_in_the_way(builder, images, tmp_path):
    (tmp_path / "index").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        builder().add(images)


def test_another_model_preprocessing_cache_or_format(builder, model, processor, images, tmp_path):
    root = tmp_path / "index"
    builder().add(images)
    with torch.no_grad():
        torch.manual_seed(3)
        other = tiny_model()
    with pytest.raises(OtherModelError, match="another model"):
        IndexBuilder(other, processor, root, CacheOptions("states")).add(images)
    with pytest.raises(OtherModelError, match="another model"):
        R2D2Retriever.open(root, other, processor)
    small = R2D2Processor.build(tiny_processor().tokenizer, image_size=32, max_length=16, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(OtherModelError, match="preprocessing"):
        R2D2Retriever.open(root, model, small)
    with pytest.raises(ValueError, match="keep='none'"):
        builder(cache=CacheOptions("none")).add(images)
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    (root / "manifest.json").write_text(json.dumps({**manifest, "format": 99}), encoding="utf-8")
    with pytest.raises(IndexFileError, match="format 99"):
        ImageIndex(root)


def test_identity_is_of_what_matters(model, processor, model_folder):
    from modeling_r2d2 import R2D2ForPreTraining, R2D2Model

    first = ModelIdentity.of(model, processor)
    assert ModelIdentity.of(R2D2Model.from_pretrained(model_folder), processor).weights == first.weights
    trained = R2D2ForPreTraining.from_pretrained(model_folder)  # with an MLM head of its own
    assert ModelIdentity.of(trained, processor).weights == first.weights
    assert ModelIdentity.of(model.__class__.from_pretrained(model_folder, dtype=torch.float16), processor) != first
    with torch.no_grad():
        trained.image_joint_projection.weight[0, 0] += 1e-3
    assert ModelIdentity.of(trained, processor).weights != first.weights
    assert first.source == str(model_folder)
    processor(text=["一只猫"], padding="max_length", max_length=9, return_tensors="pt")
    assert ModelIdentity.of(model, processor) == first  # whatever was done with the processor before


@pytest.mark.parametrize("kind", ["rows", "embeds", "states", "manifest.json", "faiss"])
@pytest.mark.parametrize("harm", ["torn", "edited", "gone"])
def test_harm_is_noticed(builder, model, processor, images, tmp_path, kind, harm):
    root = tmp_path / "index"
    builder(vectors="hnsw").add(images)
    (path,) = [p for p in sorted(root.rglob(f"*{kind}")) if p.is_file()][:1]
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[-40] ^= 1
        path.write_bytes(data if harm == "edited" else data[:-7])
    with pytest.raises(IndexFileError) as caught:
        R2D2Retriever.open(root, model, processor).search("一只猫")  # what is kept is checked when it is read
    assert path.name in str(caught.value) or harm == "gone"


def test_reading_goes_on_while_the_index_changes(builder, model, processor, images, tmp_path):
    builder().add(images)
    retriever = R2D2Retriever.open(tmp_path / "index", model, processor)
    before = retriever.search("一只猫", top_k=9)[0].to_dict()
    builder().remove(["a.png", "g.png"])
    assert retriever.search("一只猫", top_k=9)[0].to_dict() == before
    assert len(R2D2Retriever.open(tmp_path / "index", model, processor).search("一只猫", top_k=9)[0].hits) == 7


class TestSources:
    """The same pictures from everything that can hold them, with captions where there are some."""

    def check(self, model, processor, images, root, ids, texts=None):
        index = ImageIndex(root)
        assert index.table.column("id").to_pylist() == ids
        found = embeds_by_id(root)
        for id, (name, want) in zip(ids, expected_embeds(model, processor, images, NAMES[:3]).items(), strict=True):
            np.testing.assert_allclose(found[id], want, atol=1e-5, err_msg=name)
            image = index.image(index.place_of[id])
            if image.path is not None:
                assert np.array_equal(np.asarray(image.open()), _pixels(images / name))
        if texts is not None:
            assert [tuple(each) for each in index.table.column("texts").to_pylist()] == texts

    def test_jsonl(self, builder, model, processor, images, tmp_path):
        lines = [
            {"image": NAMES[0], "text": "一只猫"},
            {"image_path": NAMES[1]},
            {"image": NAMES[0], "text": ["两只猫", "一只猫"]},
            {"image": NAMES[2], "caption": "狗", "image_id": 17},
            {"text": "没有图"},
        ]
        file = images / "list.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines) + "\nno json\n", encoding="utf-8")
        outcome = builder().add(file)
        assert [entry["location"].rsplit(":", 1)[1] for entry in outcome.unreadable] == ["5", "6"]
        texts = [("一只猫", "两只猫"), (), ("狗",)]
        self.check(model, processor, images, tmp_path / "index", [NAMES[0], NAMES[1], "17"], texts)
        assert builder().add(file).unchanged == 3

    @pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
    def test_delimited(self, builder, model, processor, images, tmp_path, suffix, mark):
        rows = [mark.join(row) for row in (("text", "image"), *((f"图{n}", name) for n, name in enumerate(NAMES[:3])))]
        (tmp_path / f"list.{suffix}").write_text("\n".join([*rows, "only one"]), encoding="utf-8")
        outcome = builder().add(tmp_path / f"list.{suffix}", image_root=images)
        assert len(outcome.unreadable) == 1
        self.check(model, processor, images, tmp_path / "index", NAMES[:3], [("图0",), ("图1",), ("图2",)])
        (tmp_path / f"wrong.{suffix}").write_text("a,b\n1,2\n", encoding="utf-8")
        with pytest.raises(ValueError, match="no column for the image"):
            builder("other").add(tmp_path / f"wrong.{suffix}")

    @pytest.mark.parametrize("packed", ["", ".gz"])
    def test_tar(self, builder, model, processor, images, tmp_path, packed):
        shard = tmp_path / f"s-000.tar{packed}"
        with tarfile.open(shard, "w:gz" if packed else "w") as archive:
            for number, name in enumerate(NAMES[:3]):
                archive.add(images / name, f"{number}.{name.split('.')[-1]}")
                (tmp_path / "t.txt").write_text(f"图{number}", encoding="utf-8")
                archive.add(tmp_path / "t.txt", f"{number}.txt")
        builder().add(shard)
        ids = [f"{shard.name}/{number}.{name.split('.')[-1]}" for number, name in enumerate(NAMES[:3])]
        self.check(model, processor, images, tmp_path / "index", ids, [("图0",), ("图1",), ("图2",)])
        assert builder().add(shard).unchanged == 3
        with tarfile.open(shard) as archive:
            cut = archive.getmembers()[2].offset_data + 20
        data = shard.read_bytes()
        (tmp_path / "torn.tar").write_bytes(data[: len(data) * 2 // 3] if packed else data[:cut])
        outcome = builder("torn").add(tmp_path / "torn.tar", format="webdataset")
        assert "cannot be read from here on" in outcome.unreadable[-1]["reason"]

    def test_a_image_that_a_table_names_in_vain_is_named(self, builder, images, tmp_path):
        (images / "none.png").write_text("none")
        (images / "list.csv").write_text("image\na.png\nmissing.png\nnone.png\n", encoding="utf-8")
        outcome = builder().add(images / "list.csv")
        for entry, name in zip(outcome.unreadable, ("missing.png", "none.png"), strict=True):
            assert "list.csv:" in entry["location"]
            assert str(images / name) in entry["reason"]

    def test_data_sets(self, builder, model, processor, images, tmp_path):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = {"image": [str(images / name) for name in NAMES[:3]], "text": ["猫", "", "狗"]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        builder("object").add(dataset)
        texts = [("猫",), (), ("狗",)]
        self.check(model, processor, images, tmp_path / "object", rows["image"], texts)
        embedded = datasets.Dataset.from_list(
            [{"image": {"bytes": (images / name).read_bytes(), "path": None}} for name in NAMES[:3]],
            features=datasets.Features({"image": datasets.Image()}),
        )
        embedded.to_parquet(tmp_path / "pictures.parquet")
        builder("parquet").add(tmp_path / "pictures.parquet")
        ids = [f"0000000{number}-picture" for number in (1, 2, 3)]
        self.check(model, processor, images, tmp_path / "parquet", ids)

    @pytest.mark.parametrize("kind", ["jsonl", "csv", "tar", "parquet", "folder"])
    def test_other_columns_are_kept(self, builder, model, processor, images, tmp_path, kind):
        import datasets

        rows = [{"image": name, "text": "猫", "年": 2020 + n, "класс": "cat"} for n, name in enumerate(NAMES[:3])]
        source = images / f"list.{kind}"
        if kind == "jsonl":
            source.write_text("\n".join(map(json.dumps, [*rows, {"image": NAMES[3], "none": None}])), encoding="utf-8")
        elif kind == "csv":
            lines = [",".join(map(str, each)) for each in (rows[0], *(row.values() for row in rows))]
            source.write_text("\n".join(lines), encoding="utf-8")
        elif kind == "folder":
            lines = [json.dumps({"file_name": row.pop("image"), **row}) for row in rows]
            (images / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
            source = images
        elif kind == "parquet":
            held = [{**row, "image": {"bytes": (images / row["image"]).read_bytes(), "path": None}} for row in rows]
            features = {"image": datasets.Image(), "text": datasets.Value("string"), "年": datasets.Value("int64")}
            features = datasets.Features({**features, "класс": datasets.Value("string"), "other": datasets.Image()})
            held = [{**row, "other": row["image"]} for row in held]
            datasets.Dataset.from_list(held, features=features).to_parquet(source)
        else:
            with tarfile.open(source, "w") as archive:
                for n, row in enumerate(rows):
                    archive.add(images / row.pop("image"), f"{n}.png")
                    (tmp_path / "t.json").write_text(json.dumps(row), encoding="utf-8")
                    archive.add(tmp_path / "t.json", f"{n}.json")
        builder().add(source)
        before = files_of(tmp_path / "index")
        builder().add(source)
        assert files_of(tmp_path / "index") == before
        result = R2D2Retriever.open(tmp_path / "index", model, processor).search("猫", top_k=9)[0]
        found = [hit.metadata for hit in result.hits if hit.metadata is not None]
        year = str if kind == "csv" else int
        assert sorted(each["年"] for each in found) == [year(2020), year(2021), year(2022)]
        assert all(each == {"年": each["年"], "класс": "cat"} for each in found)
        assert [hit["metadata"] for hit in json.loads(to_json([result]))[0]["hits"] if "metadata" in hit] == found

    def test_folder_with_captions(self, builder, model, processor, images, tmp_path):
        lines = [f"{NAMES[0]}#0\t猫", f"{NAMES[0]}#1\t两只猫", f"{NAMES[2]}#0\t狗"]
        (images / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
        builder().add(images)
        index = ImageIndex(tmp_path / "index")
        assert index.image(index.place_of[NAMES[0]]).texts == ("猫", "两只猫")
        assert index.texts[0] == ["猫", "两只猫", "狗"]

    def test_a_image_is_no_source(self, builder, images):
        with pytest.raises(ValueError, match="is a picture"):
            builder().add(images / "a.png")

    def test_two_ids_and_one_id_for_two(self, builder, images, tmp_path):
        lines = [{"image": NAMES[0], "image_id": "x"}, {"image": NAMES[1], "image_id": "x"}]
        (images / "list.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        outcome = builder().add(images / "list.jsonl")
        assert outcome.images == 1
        assert "'x'" in outcome.unreadable[0]["reason"]


def _pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def test_workers_share_the_parts_and_make_the_same_index(builder, images, tmp_path):
    """Two processes, played by two threads that meet at the barrier."""
    import threading

    builder("alone").add(images)
    barrier = threading.Barrier(2)

    class Worker:
        num_processes = 2

        def __init__(self, number):
            self.process_index = number

        def wait_for_everyone(self):
            barrier.wait(timeout=60)

    encoded = [0, 0]
    outcome = [None, None]

    def run(number):
        def progress(count, doing):
            encoded[number] += count * (doing == "encoding")

        outcome[number] = builder("shared", accelerator=Worker(number), progress=progress).add(images)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert encoded == [5, 4]
    assert outcome[0].images == outcome[1].images == 9
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
