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
from modeling_r2d2.search import CacheOptions, IndexFileError, IndexLockedError, OtherModelError, PictureIndex, store
from modeling_r2d2.search.building import IndexBuilder
from tests.helpers import tiny_model, tiny_picture, tiny_processor
from tests.retrieval.conftest import NAMES, save_pictures

pytest.importorskip("faiss")  # of the extra [retrieval]


@pytest.fixture
def builder(model, processor, tmp_path):
    """Makes a builder of small shards."""

    def make(root="index", **options):
        settings = {"cache": CacheOptions("states"), "batch_size": 2, "shard_size": 2, **options}
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
    index = PictureIndex(root)
    return dict(zip(index.table.column("id").to_pylist(), np.concatenate(list(index.all_embeds())), strict=True))


def expected_embeds(model, processor, folder, names=NAMES):
    from PIL import Image

    out = {}
    for name in names:
        pixels = processor(images=[Image.open(folder / name)], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out[name] = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)[0].numpy()
    return out


def test_every_picture_with_its_embedding(builder, model, processor, pictures, tmp_path):
    built = builder().add(pictures)
    assert (built.pictures, built.added, built.unreadable) == (9, 9, [])
    found, wanted = embeds_by_id(tmp_path / "index"), expected_embeds(model, processor, pictures)
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
    CacheOptions("states"), vectors="hnsw", batch_size=2, shard_size=2, progress=progress).add(pictures)
"""


def test_killed_twice_and_resumed_gives_the_identical_index(builder, model_folder, pictures, tmp_path):
    (pictures / "c.png").write_bytes(b"no picture")
    whole = builder("whole", vectors="hnsw").add(pictures)
    root = tmp_path / "killed"
    left = []
    for after in ("5", "publishing"):
        run = subprocess.run([sys.executable, "-c", KILLED, model_folder, pictures, root, after], capture_output=True)
        assert run.returncode == -9, run.stderr.decode()
        left.append(len(list((root / "shards").glob("*.json"))))
        with pytest.raises(IndexFileError, match="run the same"):
            PictureIndex(root)
    assert left == [2, 5]
    encoded = []
    resumed = builder("killed", vectors="hnsw", progress=lambda n, doing: encoded.extend([doing] * n)).add(pictures)
    assert encoded.count("encoding") == 0
    assert encoded.count("resumed") == 10  # the unreadable one too
    assert resumed.resumed == 9
    assert (resumed.pictures, resumed.unreadable) == (whole.pictures, whole.unreadable)
    assert files_of(root) == files_of(tmp_path / "whole")


def test_an_interrupted_run_is_no_run_of_another_model(builder, model, processor, pictures, tmp_path, monkeypatch):
    def stop(count, doing):
        if doing == "encoding":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder("mixed", shard_size=1, progress=stop).add(pictures)
    torch.manual_seed(5)
    other = IndexBuilder(tiny_model(), processor, tmp_path / "mixed", batch_size=2, shard_size=2)
    built = other.add(pictures)
    assert (built.resumed, built.pictures) == (0, 9)


def test_adding_changing_pruning_removing(builder, model, processor, pictures, tmp_path):
    root = tmp_path / "index"
    builder().add(pictures)
    before = files_of(root)
    assert builder().add(pictures).unchanged == 9
    assert files_of(root) == before
    save_pictures(pictures, ["new.png"], first_seed=40)
    (pictures / "g.png").unlink()
    tiny_picture(77).save(pictures / "a.png")
    os.utime(pictures / "e.PNG")  # touched, but of the same content
    built = builder().add(pictures)
    assert (built.added, built.changed, built.removed, built.unchanged, built.pictures) == (1, 1, 0, 7, 10)
    names = [*(n for n in NAMES if n != "g.png"), "new.png"]
    found, wanted = embeds_by_id(root), expected_embeds(model, processor, pictures, names)
    assert set(found) == {*names, "g.png"}
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)
    assert builder().add(pictures, prune=True).removed == 1
    built = builder().remove(["马.png", "b c/d.webp"])
    assert (built.removed, built.pictures) == (2, 7)
    assert set(embeds_by_id(root)) == set(names) - {"马.png", "b c/d.webp"}
    with pytest.raises(ValueError, match="nirgends"):
        builder().remove(["a.png", "nirgends"])
    index = PictureIndex(root)
    states = index.cached(np.arange(len(index)))["states"]  # still each with its own picture
    for row, id in enumerate(index.table.column("id").to_pylist()):
        pixels = processor(images=[index.picture(row).open()], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            want = model.get_image_features(pixels).last_hidden_state[0]
        torch.testing.assert_close(states[row].float(), want, atol=2e-2, rtol=1e-2, msg=id)


def test_a_second_folder_with_the_same_names(builder, pictures, tmp_path):
    """It does not take the place of what is indexed; moved or linked, a picture is itself."""
    builder().add(pictures)
    before = files_of(tmp_path / "index")
    other = tmp_path / "other"
    other.mkdir()
    for seed, name in enumerate(("a.png", "e.PNG"), 90):
        tiny_picture(seed).save(other / name)
    built = builder().add(other)
    assert (built.added, built.changed, built.pictures) == (0, 0, 9)
    assert {entry["id"] for entry in built.unreadable} >= {"a.png", "e.PNG"}
    assert any(f"the index holds {pictures / 'a.png'} by this id" in entry["reason"] for entry in built.unreadable)
    (tmp_path / "link").symlink_to(pictures)
    assert builder().add(tmp_path / "link").unchanged == 9
    assert files_of(tmp_path / "index").keys() >= before.keys() - {"unreadable.jsonl"}
    (pictures / "a.png").unlink()
    assert builder().add(other).changed == 1  # the place is free


def test_unreadable_pictures_are_skipped_listed_and_tried_again(builder, pictures, tmp_path):
    (pictures / "torn.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    (pictures / "link.png").symlink_to(tmp_path / "nowhere.png")
    built = builder().add(pictures)
    assert (built.pictures, built.added) == (9, 9)
    assert {entry["id"] for entry in built.unreadable} == {"torn.png", "link.png"}
    report = (tmp_path / "index" / "unreadable.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["id"]: json.loads(line)["reason"] for line in report}.keys() == {"torn.png", "link.png"}
    tiny_picture(50).save(pictures / "torn.png")
    built = builder().add(pictures)
    assert (built.added, [entry["id"] for entry in built.unreadable]) == (1, ["link.png"])


def test_links_loops_and_duplicates(builder, pictures, tmp_path):
    (pictures / "again").symlink_to(pictures, target_is_directory=True)
    outside = save_pictures(tmp_path / "outside", ["x.png"], first_seed=30)
    (pictures / "elsewhere").symlink_to(outside, target_is_directory=True)
    shutil.copy(pictures / "a.png", pictures / "copy.png")
    built = builder().add(pictures)
    assert (built.pictures, built.duplicates) == (11, 1)
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
        PictureIndex(tmp_path / "empty")


def test_two_writers(builder, pictures, tmp_path):
    builder().add(pictures)
    with only_writer(tmp_path / "index"):
        with pytest.raises(IndexLockedError, match="another process is writing"):
            builder().add(pictures)
        assert len(PictureIndex(tmp_path / "index")) == 9  # readers are not held up
    assert builder().add(pictures).unchanged == 9


def test_full_disk_leaves_the_old_index(builder, pictures, tmp_path, monkeypatch):
    builder().add(pictures)
    before = files_of(tmp_path / "index")
    save_pictures(pictures, ["n1.png", "n2.png", "n3.png"], first_seed=60)
    write, calls = store.save_safetensors, []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(store, "save_safetensors", fail)
    with pytest.raises(OSError, match="is full.*make room") as caught:
        builder().add(pictures)
    assert caught.value.errno == errno.ENOSPC
    after = files_of(tmp_path / "index")
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if "partial" in name]
    assert len(PictureIndex(tmp_path / "index")) == 9
    monkeypatch.undo()
    built = builder().add(pictures)
    assert (built.added, built.resumed) == (3, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(builder, pictures, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="cannot be written to"):
        builder("locked/index").add(pictures)


def test_a_file_in_the_way(builder, pictures, tmp_path):
    (tmp_path / "index").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        builder().add(pictures)


def test_another_model_preprocessing_cache_or_format(builder, model, processor, pictures, tmp_path):
    root = tmp_path / "index"
    builder().add(pictures)
    with torch.no_grad():
        torch.manual_seed(3)
        other = tiny_model()
    with pytest.raises(OtherModelError, match="another model"):
        IndexBuilder(other, processor, root, CacheOptions("states")).add(pictures)
    with pytest.raises(OtherModelError, match="another model"):
        R2D2Retriever.open(root, other, processor)
    small = R2D2Processor.build(tiny_processor().tokenizer, image_size=32, max_length=16, image_mean=[0.5, 0.5, 0.5])
    with pytest.raises(OtherModelError, match="preprocessing"):
        R2D2Retriever.open(root, model, small)
    with pytest.raises(ValueError, match="keep='none'"):
        builder(cache=CacheOptions("none")).add(pictures)
    manifest = json.loads((root / "manifest.json").read_text("utf-8"))
    (root / "manifest.json").write_text(json.dumps({**manifest, "format": 99}), encoding="utf-8")
    with pytest.raises(IndexFileError, match="format 99"):
        PictureIndex(root)


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


@pytest.mark.parametrize("kind", ["rows", "embeds", "cache", "manifest.json", "faiss"])
@pytest.mark.parametrize("harm", ["torn", "edited", "gone"])
def test_harm_is_noticed(builder, model, processor, pictures, tmp_path, kind, harm):
    root = tmp_path / "index"
    builder(vectors="hnsw").add(pictures)
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


def test_reading_goes_on_while_the_index_changes(builder, model, processor, pictures, tmp_path):
    builder().add(pictures)
    retriever = R2D2Retriever.open(tmp_path / "index", model, processor)
    before = retriever.search("一只猫", top_k=9)[0].to_dict()
    builder().remove(["a.png", "g.png"])
    assert retriever.search("一只猫", top_k=9)[0].to_dict() == before
    assert len(R2D2Retriever.open(tmp_path / "index", model, processor).search("一只猫", top_k=9)[0].hits) == 7


class TestSources:
    """The same pictures from everything that can hold them, with captions where there are some."""

    def check(self, model, processor, pictures, root, ids, texts=None):
        index = PictureIndex(root)
        assert index.table.column("id").to_pylist() == ids
        found = embeds_by_id(root)
        for id, (name, want) in zip(ids, expected_embeds(model, processor, pictures, NAMES[:3]).items(), strict=True):
            np.testing.assert_allclose(found[id], want, atol=1e-5, err_msg=name)
            picture = index.picture(index.place_of[id])
            if picture.path is not None:
                assert np.array_equal(np.asarray(picture.open()), _pixels(pictures / name))
        if texts is not None:
            assert [tuple(each) for each in index.table.column("texts").to_pylist()] == texts

    def test_jsonl(self, builder, model, processor, pictures, tmp_path):
        lines = [
            {"image": NAMES[0], "text": "一只猫"},
            {"image_path": NAMES[1]},
            {"image": NAMES[0], "text": ["两只猫", "一只猫"]},
            {"image": NAMES[2], "caption": "狗", "image_id": 17},
            {"text": "没有图"},
        ]
        file = pictures / "list.jsonl"
        file.write_text("\n".join(json.dumps(line) for line in lines) + "\nno json\n", encoding="utf-8")
        built = builder().add(file)
        assert [entry["location"].rsplit(":", 1)[1] for entry in built.unreadable] == ["5", "6"]
        texts = [("一只猫", "两只猫"), (), ("狗",)]
        self.check(model, processor, pictures, tmp_path / "index", [NAMES[0], NAMES[1], "17"], texts)
        assert builder().add(file).unchanged == 3

    @pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
    def test_delimited(self, builder, model, processor, pictures, tmp_path, suffix, mark):
        rows = [mark.join(row) for row in (("text", "image"), *((f"图{n}", name) for n, name in enumerate(NAMES[:3])))]
        (tmp_path / f"list.{suffix}").write_text("\n".join([*rows, "only one"]), encoding="utf-8")
        built = builder().add(tmp_path / f"list.{suffix}", image_root=pictures)
        assert len(built.unreadable) == 1
        self.check(model, processor, pictures, tmp_path / "index", NAMES[:3], [("图0",), ("图1",), ("图2",)])
        (tmp_path / f"wrong.{suffix}").write_text("a,b\n1,2\n", encoding="utf-8")
        with pytest.raises(ValueError, match="no column for the image"):
            builder("other").add(tmp_path / f"wrong.{suffix}")

    @pytest.mark.parametrize("packed", ["", ".gz"])
    def test_tar(self, builder, model, processor, pictures, tmp_path, packed):
        shard = tmp_path / f"s-000.tar{packed}"
        with tarfile.open(shard, "w:gz" if packed else "w") as archive:
            for number, name in enumerate(NAMES[:3]):
                archive.add(pictures / name, f"{number}.{name.split('.')[-1]}")
                (tmp_path / "t.txt").write_text(f"图{number}", encoding="utf-8")
                archive.add(tmp_path / "t.txt", f"{number}.txt")
        builder().add(shard)
        ids = [f"{shard.name}/{number}.{name.split('.')[-1]}" for number, name in enumerate(NAMES[:3])]
        self.check(model, processor, pictures, tmp_path / "index", ids, [("图0",), ("图1",), ("图2",)])
        assert builder().add(shard).unchanged == 3
        with tarfile.open(shard) as archive:
            cut = archive.getmembers()[2].offset_data + 20
        data = shard.read_bytes()
        (tmp_path / "torn.tar").write_bytes(data[: len(data) * 2 // 3] if packed else data[:cut])
        built = builder("torn").add(tmp_path / "torn.tar", format="webdataset")
        assert "cannot be read from here on" in built.unreadable[-1]["reason"]

    def test_a_picture_that_a_table_names_in_vain_is_named(self, builder, pictures, tmp_path):
        (pictures / "none.png").write_text("none")
        (pictures / "list.csv").write_text("image\na.png\nmissing.png\nnone.png\n", encoding="utf-8")
        built = builder().add(pictures / "list.csv")
        for entry, name in zip(built.unreadable, ("missing.png", "none.png"), strict=True):
            assert "list.csv:" in entry["location"]
            assert str(pictures / name) in entry["reason"]

    def test_data_sets(self, builder, model, processor, pictures, tmp_path):
        import datasets

        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = {"image": [str(pictures / name) for name in NAMES[:3]], "text": ["猫", "", "狗"]}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        builder("object").add(dataset)
        texts = [("猫",), (), ("狗",)]
        self.check(model, processor, pictures, tmp_path / "object", rows["image"], texts)
        embedded = datasets.Dataset.from_list(
            [{"image": {"bytes": (pictures / name).read_bytes(), "path": None}} for name in NAMES[:3]],
            features=datasets.Features({"image": datasets.Image()}),
        )
        embedded.to_parquet(tmp_path / "pictures.parquet")
        builder("parquet").add(tmp_path / "pictures.parquet")
        ids = [f"0000000{number}-picture" for number in (1, 2, 3)]
        self.check(model, processor, pictures, tmp_path / "parquet", ids)

    def test_folder_with_captions(self, builder, model, processor, pictures, tmp_path):
        lines = [f"{NAMES[0]}#0\t猫", f"{NAMES[0]}#1\t两只猫", f"{NAMES[2]}#0\t狗"]
        (pictures / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
        builder().add(pictures)
        index = PictureIndex(tmp_path / "index")
        assert index.picture(index.place_of[NAMES[0]]).texts == ("猫", "两只猫")
        assert index.texts[0] == ["猫", "两只猫", "狗"]

    def test_a_picture_is_no_source(self, builder, pictures):
        with pytest.raises(ValueError, match="is a picture"):
            builder().add(pictures / "a.png")

    def test_two_ids_and_one_id_for_two(self, builder, pictures, tmp_path):
        lines = [{"image": NAMES[0], "image_id": "x"}, {"image": NAMES[1], "image_id": "x"}]
        (pictures / "list.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        built = builder().add(pictures / "list.jsonl")
        assert built.pictures == 1
        assert "'x'" in built.unreadable[0]["reason"]


def _pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))


def test_workers_share_the_shards_and_make_the_same_index(builder, pictures, tmp_path):
    """Two processes, played by two threads that meet at the barrier."""
    import threading

    builder("alone").add(pictures)
    barrier = threading.Barrier(2)

    class Worker:
        num_processes = 2

        def __init__(self, number):
            self.process_index = number

        def wait_for_everyone(self):
            barrier.wait(timeout=60)

    encoded = [0, 0]
    built = [None, None]

    def run(number):
        def progress(count, doing):
            encoded[number] += count * (doing == "encoding")

        built[number] = builder("shared", accelerator=Worker(number), progress=progress).add(pictures)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert encoded == [5, 4]
    assert built[0].pictures == built[1].pictures == 9
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
