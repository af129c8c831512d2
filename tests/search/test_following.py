"""An index follows its pictures and its model: moved, renamed, changed, gone, and whatever was killed in between."""

import hashlib
import json
import os
import random
import shlex
import shutil
import tarfile

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.cli import app
from modeling_r2d2.inference.identity import ModelIdentity, canonical
from modeling_r2d2.search import CacheOptions, ImageIndex, IndexFileError, OtherModelError, building
from modeling_r2d2.search.building import IndexBuilder
from modeling_r2d2.search.manifest import Manifest
from tests.helpers import tiny_image, tiny_model
from tests.search.conftest import NAMES, save_images

pytest.importorskip("faiss")  # of the extra [retrieval]


@pytest.fixture
def builder(model, processor, tmp_path):
    """Makes a builder of small parts that counts what it encodes."""

    def make(root="index", **options):
        def progress(count, doing):
            made.encoded += count * (doing == "encoding")

        settings = {"cache": CacheOptions("states"), "batch_size": 2, "part_size": 2, "progress": progress, **options}
        made = IndexBuilder(model, processor, tmp_path / root, **settings)
        made.encoded = 0
        return made

    return make


def state_of(root):
    """Bytes and time of every file of an index."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def content_of(root):
    """What an index holds of each id, in whatever row: place, hash, captions; and embedding, kept states."""
    index = ImageIndex(root)
    ids = index.table.column("id").to_pylist()
    assert len(ids) == len(set(ids)), "two rows of one id"
    embeds = np.concatenate(list(index.all_embeds()))
    states = index.cached(np.arange(len(index)))["states"].float().numpy()
    names = ("path", "content", "texts", "size", "mtime_ns", "offset")
    columns = {name: index.table.column(name).to_pylist() for name in names}
    return {id: ([columns[name][row] for name in names], embeds[row], states[row]) for row, id in enumerate(ids)}


def assert_equal(root, fresh):
    """Two indexes hold the same; the tower's last bits depend on what shares a batch."""
    found, wanted = content_of(root), content_of(fresh)
    assert found.keys() == wanted.keys()
    for id, (row, embed, states) in wanted.items():
        assert found[id][0] == row
        np.testing.assert_allclose(found[id][1], embed, atol=1e-6, err_msg=id)
        np.testing.assert_allclose(found[id][2], states, atol=1e-2, err_msg=id)


def hits_of(root, model, processor):
    found = R2D2Retriever.open(root, model, processor).search("一只猫", top_k=99)[0].hits
    return {hit.id: hit.problem for hit in found}


class TestMoved:
    def test_a_folder(self, builder, model, processor, images, tmp_path):
        root = tmp_path / "index"
        builder(vectors="hnsw").add(images)
        moved = images.rename(tmp_path / "elsewhere")
        assert set(hits_of(root, model, processor).values()) == {"missing"}
        again = builder(vectors="hnsw")
        outcome = again.add(moved)
        assert (outcome.images, outcome.unchanged, outcome.moved, outcome.added, outcome.removed) == (9, 9, 9, 0, 0)
        assert (again.encoded, outcome.gone) == (0, [])
        assert set(hits_of(root, model, processor).values()) == {None}
        builder("fresh", vectors="hnsw").add(moved)
        assert_equal(root, tmp_path / "fresh")
        before = state_of(root)
        assert builder(vectors="hnsw").add(moved).moved == 0
        assert state_of(root) == before
        (rows,) = (root / "data").glob("*.rows")
        assert bytes(str(images), "utf-8") not in rows.read_bytes()

    def test_partly_and_some_are_gone(self, builder, model, processor, images, tmp_path):
        builder().add(images)
        shutil.copytree(images, tmp_path / "copy")
        (images / "a.png").unlink()
        (images / "e.PNG").unlink()
        (tmp_path / "copy" / "e.PNG").unlink()
        again = builder()
        outcome = again.add(tmp_path / "copy")
        assert (outcome.unchanged, outcome.moved, outcome.gone, again.encoded) == (8, 1, ["e.PNG"], 0)
        index = ImageIndex(tmp_path / "index")
        assert index.image(index.place_of["a.png"]).path == str(tmp_path / "copy" / "a.png")
        assert index.image(index.place_of["f.bmp"]).path == str(images / "f.bmp")  # the place that is known holds
        assert hits_of(tmp_path / "index", model, processor)["e.PNG"] == "missing"

    def test_another_folder_of_equal_names_sizes_and_times_is_no_move(self, builder, images, tmp_path):
        """Unpacked archives and checkouts give all files one time; bitmaps of one size are of one length."""
        first, second = tmp_path / "1", tmp_path / "2"
        for seed, folder in enumerate((first, second)):
            folder.mkdir()
            tiny_image(seed, width=20, height=20).save(folder / "x.bmp")
            os.utime(folder / "x.bmp", ns=(10**18, 10**18))
        builder().add(first)
        (first / "x.bmp").unlink()
        again = builder()
        assert (again.add(second).changed, again.encoded) == (1, 1)

    def test_a_renamed_file_and_another_spelling(self, builder, model, processor, images, tmp_path):
        builder().add(images)
        (images / "a.png").rename(images / "A.png")
        (images / "b c").rename(images / "B C")
        again = builder()
        outcome = again.add(images)
        assert (outcome.images, outcome.moved, outcome.added, outcome.gone, again.encoded) == (9, 3, 0, [], 0)
        assert set(hits_of(tmp_path / "index", model, processor)) == {
            *(name for name in NAMES if name != "a.png" and not name.startswith("b c")),
            "A.png",
            "B C/狗🐶.jpg",
            "B C/d.webp",
        }

    def test_a_name_that_another_file_takes(self, builder, images, tmp_path):
        builder().add(images)
        os.replace(images / "g.png", images / "a.png")
        again = builder()
        outcome = again.add(images)
        assert (outcome.images, again.encoded) == (8, 0)
        builder("fresh").add(images)
        assert_equal(tmp_path / "index", tmp_path / "fresh")

    def test_relative_and_full_paths_links_and_touched_files(self, builder, images, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (images / "bad.png").write_bytes(b"no picture")
        builder().add(images.name)
        (tmp_path / "link").symlink_to(images)
        before = state_of(tmp_path / "index")
        for spelling in (images, f"{images}/", f"./{images.name}", tmp_path / "link"):
            assert builder().add(spelling).unchanged == 9
        assert state_of(tmp_path / "index") == before
        os.utime(images / "a.png")
        again = builder()
        outcome = again.add(images)
        assert (outcome.unchanged, outcome.moved, again.encoded) == (9, 0, 0)
        index = ImageIndex(tmp_path / "index")
        assert index.image(index.place_of["a.png"]).state() is None

    def test_tables_of_full_paths_and_shards(self, builder, model, processor, images, tmp_path):
        for number, kind in enumerate(("csv", "tar")):
            place, root = tmp_path / f"place{number}", tmp_path / f"index{number}"
            place.mkdir()

            def source(place, kind=kind):
                if kind == "tar":
                    with tarfile.open(place / f"{place.name}.tar", "w") as archive:
                        for name in ("a.png", "e.PNG", "f.bmp"):
                            archive.add(images / name, name)
                    return place / f"{place.name}.tar"
                for name in ("a.png", "e.PNG", "f.bmp"):
                    shutil.copy(images / name, place)
                rows = "\n".join(f"{place / name},图{name}" for name in ("a.png", "e.PNG", "f.bmp"))
                (place / "list.csv").write_text(f"image,text\n{rows}\n", encoding="utf-8")
                return place / "list.csv"

            builder(root.name).add(source(place))
            shutil.rmtree(place)
            moved = tmp_path / f"moved{number}"
            moved.mkdir()
            again = builder(root.name)
            outcome = again.add(source(moved))
            assert (outcome.images, outcome.moved, outcome.gone, again.encoded) == (3, 3, [], 0)
            assert set(hits_of(root, model, processor).values()) == {None}

    def test_one_of_two_folders(self, builder, images, tmp_path):
        """Ids of several folders begin with as much of each as tells them apart: here all of them change."""
        first = save_images(tmp_path / "A" / "photos", ["x.png", "y.png"], 50)
        second = save_images(tmp_path / "B" / "photos", ["x.png", "z.png"], 60)
        builder().add([first, second])
        moved = first.rename(tmp_path / "A" / "fotos")
        again = builder()
        outcome = again.add([moved, second])
        assert (outcome.images, outcome.moved, outcome.added, outcome.gone, again.encoded) == (4, 4, 0, [], 0)
        builder("fresh").add([moved, second])
        assert_equal(tmp_path / "index", tmp_path / "fresh")
        again = builder()
        assert (again.add([moved, second, images]).images, again.encoded) == (13, 9)

    def test_ids_that_were_edited(self, builder, images, tmp_path):
        listed = images / "list.jsonl"

        def write(*ids):
            rows = [{"image": name, "image_id": id} for id, name in zip(ids, NAMES[:1] * 2 + NAMES[2:], strict=False)]
            listed.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

        write("1", "2", "3", "4")
        builder().add(listed)
        write("1", "2", "three", "4")
        again = builder()
        outcome = again.add(listed)
        assert (outcome.images, outcome.moved, again.encoded) == (4, 1, 0)
        write("0", "1", "2", "4")
        builder().add(listed, prune=True)
        builder("fresh").add(listed)
        assert_equal(tmp_path / "index", tmp_path / "fresh")

    def test_names_that_are_no_unicode(self, builder, images, tmp_path):
        for call in (
            lambda: builder().add(tmp_path / os.fsdecode(b"\xb2\xe2")),
            lambda: builder(os.fsdecode(b"\xb2\xe2")).add(images),
        ):
            with pytest.raises(ValueError, match="not valid UTF-8.*rename it"):
                call()
        assert not (tmp_path / "index").exists()

    def test_the_index_itself(self, builder, model, processor, images, tmp_path):
        builder(vectors="ivf").add(images)
        moved = (tmp_path / "index").rename(tmp_path / "moved")
        assert set(hits_of(moved, model, processor).values()) == {None}
        again = builder("moved", vectors="ivf")
        assert (again.add(images).unchanged, again.encoded) == (9, 0)

    def test_where_no_links_are_possible(self, builder, images, tmp_path, monkeypatch):
        builder().add(images)
        moved = images.rename(tmp_path / "elsewhere")

        def refuse(*_, **__):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuse)
        builder().add(moved)
        builder("fresh").add(moved)
        assert_equal(tmp_path / "index", tmp_path / "fresh")


class TestModelMoved:
    def test_renamed_folder(self, model_folder, images, tmp_path):
        there, root = tmp_path / "my model", tmp_path / "index"
        shutil.copytree(model_folder, there)
        R2D2Retriever.build(images, there, root)
        shutil.move(there, tmp_path / "renamed")
        for call in (lambda: R2D2Retriever.open(root), lambda: CliRunner().invoke(app, ["search", str(root), "猫"])):
            with pytest.raises(ValueError, match=r"my model, and there is no such folder any more.*--model") as caught:
                raise getattr(call(), "exception", None) or AssertionError
            assert "\n" not in str(caught.value)
            assert "hub" not in str(caught.value).lower()
        generation = Manifest.load(root).generation
        assert R2D2Retriever.open(root, tmp_path / "renamed").search("猫")[0].hits
        assert R2D2Retriever.open(root).search("猫")[0].hits  # remembered
        assert Manifest.load(root).generation == generation
        shutil.move(tmp_path / "renamed", there)
        result = CliRunner().invoke(app, ["index", str(images), "--output", str(root), "--model", str(there)])
        assert result.exit_code == 0, result.output
        assert Manifest.load(root).model.source == str(there)

    def test_a_copy_elsewhere_is_not_noted(self, model_folder, images, tmp_path):
        root = tmp_path / "index"
        R2D2Retriever.build(images, model_folder, root)
        shutil.copytree(model_folder, tmp_path / "copy")
        before = state_of(root)
        R2D2Retriever.open(root, tmp_path / "copy")
        R2D2Retriever.build(images, tmp_path / "copy", root)
        assert state_of(root) == before


class TestKilled:
    """A process that ends before its n-th rename, removal or bringing to the disk, for every n."""

    def killed(self, change, number, begin=None):
        """Run in a child that ends at once at the given step, counted once `begin` of the builder's module is called;
        whether it got so far."""
        child = os.fork()
        if child:
            status = os.waitpid(child, 0)[1]
            assert os.WIFEXITED(status)
            assert os.WEXITSTATUS(status) in (0, 77)
            return os.WEXITSTATUS(status) == 77
        steps = -(10**9) if begin else 0

        def started(*args):
            nonlocal steps
            steps = 0
            return kept(*args)

        def counted(step):
            def run(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == number:
                    os._exit(77)
                return step(*args, **kwargs)

            return run

        try:
            if begin:
                kept = getattr(building, begin)
                setattr(building, begin, started)
            for name in ("replace", "unlink", "fsync", "truncate"):
                setattr(os, name, counted(getattr(os, name)))
            torch.set_num_threads(1)
            change()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)

    def changes(self, images, rng):
        """Change, delete, add and rename pictures at random."""
        names = sorted(path.name for path in images.glob("*.png"))
        tiny_image(rng.randrange(10**6)).save(images / rng.choice(names))
        (images / rng.choice(names)).unlink()
        names = sorted(path.name for path in images.glob("*.png"))
        (images / rng.choice(names)).rename(images / f"renamed{rng.randrange(10**6)}.png")
        tiny_image(rng.randrange(10**6)).save(images / f"new{rng.randrange(10**6)}.png")
        (images / f"bad{rng.randrange(10**6)}.png").write_bytes(b"no picture")

    @pytest.mark.parametrize("vectors", ["flat", "hnsw"])
    def test_at_any_step(self, builder, images, tmp_path, vectors):
        rng = random.Random(0 if vectors == "flat" else 1)
        root, step, killed = tmp_path / "index", 1, 0
        while step < 60:
            if self.killed(lambda: builder(vectors=vectors).add(images, prune=True), step):
                killed += 1
            else:
                step = 0
            self.changes(images, rng)
            step += 1 + rng.randrange(4 if killed < 12 else 30)
        builder(vectors=vectors).add(images, prune=True)
        builder("fresh", vectors=vectors).add(images)
        assert killed > 8
        assert_equal(root, tmp_path / "fresh")
        reports = [ImageIndex(place).manifest.unreadable for place in (root, tmp_path / "fresh")]
        assert reports[0] == reports[1]
        found = {path.relative_to(root).as_posix() for path in (root / "data").iterdir()}
        assert found == {name for name in Manifest.load(root).files if name.startswith("data/")}

    def test_at_each_step_of_publishing(self, builder, images, tmp_path):
        """Pictures are added, changed, moved and removed, so many that all files are written again after that."""
        before, root, step = tmp_path / "before", tmp_path / "index", 0
        builder("before", vectors="hnsw").add(images)
        first = content_of(before)
        for seed, name in enumerate(("a.png", "new.png"), start=80):
            tiny_image(seed).save(images / name)
        (images / "e.PNG").rename(images / "renamed.png")
        (images / "f.bmp").unlink()
        (images / "g.png").unlink()
        builder("after", vectors="hnsw").add(images, prune=True)
        second = content_of(tmp_path / "after")
        assert Manifest.load(tmp_path / "after").removed == 0
        killed = True
        while killed:
            step += 1
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(before, root)
            killed = self.killed(lambda: builder(vectors="hnsw").add(images, prune=True), step, "changed")
            assert content_of(root).keys() in (first.keys(), second.keys())
            ImageIndex(root, verify=True)
            again = builder(vectors="hnsw")
            assert (again.add(images, prune=True).images, again.encoded) == (8, 0)
            assert_equal(root, tmp_path / "after")
            found = {path.relative_to(root).as_posix() for path in (root / "data").iterdir()}
            assert found == {name for name in Manifest.load(root).files if name.startswith("data/")}
        assert step > 25

    def test_a_changed_image_is_there_once(self, builder, images, tmp_path):
        assert self.killed(lambda: builder().add(images), 20)
        tiny_image(99).save(images / "a.png")
        (images / "b c" / "d.webp").unlink()
        outcome = builder().add(images)
        assert (outcome.images, outcome.resumed > 0) == (8, True)
        builder("fresh").add(images)
        assert_equal(tmp_path / "index", tmp_path / "fresh")

    def test_another_source_does_not_take_over(self, builder, images, tmp_path):
        assert self.killed(lambda: builder().add(images), 20)
        other = save_images(tmp_path / "other", ["x.png"], 70)
        assert builder().add(other).images == 1


class TestUnreadable:
    def test_what_is_gone_is_no_longer_reported(self, builder, images, tmp_path):
        for name in ("bad.png", "worse.png"):
            (images / name).write_bytes(b"no picture")
        assert len(builder().add(images).unreadable) == 2
        (images / "bad.png").unlink()
        assert [entry["id"] for entry in builder().add(images).unreadable] == ["worse.png"]
        other = save_images(tmp_path / "other", ["x.png"], 70)
        (other / "torn.png").write_bytes(b"\\x89PNG")
        outcome = builder().add(other)
        assert {entry["id"] for entry in outcome.unreadable} == {"worse.png", "torn.png"}  # of both sources
        (images / "worse.png").unlink()
        assert [entry["id"] for entry in builder().add(other).unreadable] == ["torn.png"]
        tiny_image(71).save(other / "torn.png")
        outcome = builder().add(other)
        assert (outcome.added, outcome.unreadable) == (1, [])
        assert (tmp_path / "index" / "unreadable.jsonl").read_text("utf-8") == ""

    def test_lines_of_lists_that_were_named_otherwise_or_are_gone(self, builder, images, tmp_path):
        first, second = images / "first.jsonl", tmp_path / "second.tar"
        first.write_text('{"image": "a.png"}\nbroken\n', encoding="utf-8")
        second.write_bytes(b"no archive")
        assert len(builder().add(first).unreadable) == 1
        assert len(builder().add([first, second]).unreadable) == 2  # the broken line once, though named twice
        second.unlink()
        outcome = builder().add(images)
        assert [entry["location"] for entry in outcome.unreadable] == [f"{first}:2"]
        first.unlink()
        assert builder().add(images).unreadable == []

    def test_repaired_with_its_old_time_and_size(self, builder, images):
        whole = (images / "a.png").read_bytes()
        (images / "bad.png").write_bytes(bytes(len(whole)))
        os.utime(images / "bad.png", ns=(10**18, 10**18))
        builder().add(images)
        (images / "bad.png").write_bytes(whole)
        os.utime(images / "bad.png", ns=(10**18, 10**18))
        assert builder().add(images).added == 1


class TestNothingToDo:
    """A second run without changes writes nothing."""

    @pytest.mark.parametrize("kind", ["folder", "jsonl", "csv", "tar", "tar.gz", "parquet"])
    def test_with_problems_duplicates_and_captions(self, builder, images, tmp_path, kind):
        (images / "bad.png").write_bytes(b"no picture")
        shutil.copy(images / "a.png", images / "copy.png")
        names = ["a.png", "copy.png", "bad.png", "e.PNG"]
        if kind == "folder":
            (images / "captions.txt").write_text("a.png#0\\t猫\\ngone.png#0\\t狗\\n", encoding="utf-8")
            source = images
        elif kind == "jsonl":
            rows = [{"image": name, "text": ["猫", f"图{name}"]} for name in [*names, "missing.png", "a.png"]]
            source = images / "list.jsonl"
            source.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n[1]\n", encoding="utf-8")
        elif kind == "csv":
            source = images / "list.csv"
            source.write_text("image,text\n" + "".join(f"{name},猫\n" for name in names) + "x\n", encoding="utf-8")
        elif kind == "parquet":
            import datasets

            rows = [{"image": {"bytes": (images / name).read_bytes(), "path": name}, "text": "猫"} for name in names]
            features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
            source = tmp_path / "list.parquet"
            datasets.Dataset.from_list(rows, features=features).to_parquet(source)
        else:
            source = tmp_path / f"s.{kind}"
            with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as archive:
                for number, name in enumerate(names):
                    archive.add(images / name, f"{number}.png")
        first = builder(vectors="hnsw").add(source)
        assert first.unreadable
        before, generation = state_of(tmp_path / "index"), Manifest.load(tmp_path / "index").generation
        for _ in range(2):
            again = builder(vectors="hnsw")
            outcome = again.add(source)
            assert (outcome.images, outcome.unchanged, again.encoded) == (first.images, first.images, 0)
            assert outcome.unreadable == first.unreadable
            assert state_of(tmp_path / "index") == before
            assert Manifest.load(tmp_path / "index").generation == generation

    def test_two_sources_in_turn(self, builder, images, tmp_path):
        other = save_images(tmp_path / "other", ["x.png"], 70)
        for folder in (images, other):
            (folder / "bad.png" if folder is other else folder / "worse.png").write_bytes(b"no picture")
            builder().add(folder)
        before = state_of(tmp_path / "index")
        for folder in (images, other, images):
            builder().add(folder)
            assert state_of(tmp_path / "index") == before


class TestPrune:
    def test_a_source_with_errors(self, builder, images, tmp_path):
        listed = images / "list.csv"
        rows = [f'"{name}","图"' for name in NAMES]
        listed.write_text("\n".join(["image,text", *rows]), encoding="utf-8")
        builder().add(listed)
        rows[3] = '"e.PNG","图'
        listed.write_text("\n".join(["image,text", *rows]), encoding="utf-8")
        outcome = builder().add(listed, prune=True)
        assert (outcome.images, outcome.removed) == (9, 0)
        assert "errors" in outcome.not_pruned
        arguments = ["index", str(listed), "--output", str(tmp_path / "index"), "--prune"]
        result = CliRunner().invoke(app, arguments)
        assert "nothing was removed: the source has errors" in result.output

    def test_a_cut_shard_and_a_bad_line(self, builder, images, tmp_path):
        shard, lines = tmp_path / "s.tar", images / "list.jsonl"
        with tarfile.open(shard, "w") as archive:
            for name in NAMES:
                archive.add(images / name, name)
        lines.write_text("\n".join(json.dumps({"image": name}) for name in NAMES), encoding="utf-8")
        for number, source in enumerate((shard, lines)):
            builder(f"index{number}").add(source)
            whole = source.read_bytes()
            source.write_bytes(whole[: len(whole) // 2])
            outcome = builder(f"index{number}").add(source, prune=True)
            assert (outcome.images, outcome.removed, bool(outcome.not_pruned)) == (9, 0, True)

    def test_an_empty_or_a_missing_source(self, builder, images, tmp_path):
        builder().add(images)
        away = images.rename(tmp_path / "unmounted")
        with pytest.raises(FileNotFoundError):
            builder().add(images, prune=True)
        images.mkdir()
        outcome = builder().add(images, prune=True)
        assert (outcome.images, outcome.removed, len(outcome.gone)) == (9, 0, 9)
        assert "empty" in outcome.not_pruned
        images.rmdir()
        away.rename(images)
        assert builder().add(images, prune=True).gone == []

    def test_one_of_several_is_empty_as_an_unmounted_one(self, builder, images, tmp_path):
        other = save_images(tmp_path / "other", ["x.png", "y.png", "z.png"], 70)
        builder().add([images, other])
        for name in ("x.png", "y.png", "z.png"):
            (other / name).rename(tmp_path / name)
        (images / "a.png").unlink()
        outcome = builder().add([images, other], prune=True)
        assert (outcome.images, outcome.removed, len(outcome.gone)) == (12, 0, 4)
        assert str(other) in outcome.not_pruned
        (tmp_path / "x.png").rename(other / "x.png")
        outcome = builder().add([images, other], prune=True)
        assert (outcome.images, outcome.removed, outcome.not_pruned) == (9, 3, None)
        os.symlink(images, tmp_path / "link")
        (other / "x.png").unlink()
        assert builder().add([tmp_path / "link", other], prune=True).not_pruned.startswith(str(other))

    def test_several_sources(self, builder, images, tmp_path):
        other = save_images(tmp_path / "other", ["x.png", "y.png", "z.png"], 70)
        builder().add(images)
        builder().add(other)
        (images / "a.png").unlink()
        (other / "x.png").unlink()
        outcome = builder().add(images)
        assert (outcome.removed, set(outcome.gone)) == (0, {"a.png", "x.png"})
        shutil.move(other / "y.png", tmp_path / "y.png")
        (other / "y.png").write_bytes(b"")  # not gone, and none of this source
        outcome = builder().add(images, prune=True)
        assert (outcome.removed, outcome.images, outcome.gone) == (2, 10, [])
        assert {"y.png", "z.png"} < set(content_of(tmp_path / "index"))

    def test_a_range_that_has_grown_and_lost_one(self, builder, images, tmp_path):
        def write(number, names):
            with tarfile.open(tmp_path / f"s-{number}.tar", "w") as archive:
                for name in names:
                    archive.add(images / name, name)

        write(0, NAMES[:2])
        write(1, NAMES[4:6])
        builder().add(str(tmp_path / "s-{0..1}.tar"))
        write(1, NAMES[4:5])
        write(2, NAMES[6:8])
        outcome = builder().add(str(tmp_path / "s-{0..2}.tar"), prune=True)
        assert (outcome.removed, outcome.added, outcome.images) == (1, 2, 5)

    def test_removed_by_hand_comes_back_with_its_source(self, builder, images, tmp_path):
        builder().add(images)
        builder().remove(["a.png"])
        assert builder().add(images, prune=True).added == 1


def test_captions_behind_damage_stay(builder, images, tmp_path):
    names = [path.name for path in sorted(images.iterdir())]
    lines = [json.dumps({"file_name": name, "text": f"第{n}张"}, ensure_ascii=False) for n, name in enumerate(names)]
    captions = images / "metadata.jsonl"
    captions.write_text("\n".join(lines), encoding="utf-8")
    builder().add(images)
    whole = content_of(tmp_path / "index")
    captions.write_text("\n".join([lines[0], lines[1][:20], *lines[3:]]), encoding="utf-8")  # one torn, one lost
    changed = builder().add(images)
    assert (changed.changed, len(changed.unreadable)) == (0, 1)
    assert [row for row, *_ in content_of(tmp_path / "index").values()] == [row for row, *_ in whole.values()]
    captions.write_text("\n".join([*lines[:2], *lines[3:]]), encoding="utf-8")  # repaired, and one taken away
    assert builder().add(images).changed == 1


def save_of_earlier(root, format, model, processor, images):
    """An index as earlier releases made it: shards of a few files each."""
    import pyarrow as pa

    (root / "shards").mkdir(parents=True)
    files = {kind: {"size": 4, "digest": None} for kind in ("rows", "embeds", "cache")}
    for kind in ("embeds", "cache", "json"):
        (root / "shards" / f"00000000.{kind}").write_bytes(b"held")
    table = pa.table({"id": ["a.png"], "path": [str(images / "a.png")]})
    with pa.OSFile(str(root / "shards" / "00000000.rows"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (root / "vectors.000001.faiss").write_bytes(b"held")
    body = {
        "format": format,
        "model": vars(ModelIdentity.of(model, processor)),
        "dimension": 8,
        "cache": {"keep": "states", "precision": "float16"},
        "shards": [{"name": "00000000", "rows": 1, "texts": 0, "files": files, "unreadable": []}],
        "vectors": {"kind": "hnsw", "file": "vectors.000001.faiss", "record": {"size": 4, "digest": None}},
        "generation": 1,
        **({"unreadable": [], "sources": [shlex.quote(str(images))]} if format == 2 else {}),
    }
    body["checksum"] = hashlib.blake2b(canonical(body), digest_size=16).hexdigest()
    (root / "manifest.json").write_text(json.dumps(body), encoding="utf-8")


class TestRebuild:
    """An index of another model, preprocessing or release is refused with a command that works as it stands."""

    def test_the_command_works(self, model, processor, model_folder, tmp_path):
        images = save_images(tmp_path / "it's my $HOME; pictures")
        other, root = tmp_path / "the other", tmp_path / "index of 'mine'"
        IndexBuilder(model, processor, root, CacheOptions("states", "float32")).add(images)
        more = save_images(tmp_path / "more", ["x.png"], 40)
        IndexBuilder(model, processor, root, CacheOptions("states", "float32")).add(more)
        torch.manual_seed(7)
        tiny_model().save_pretrained(other)
        processor.save_pretrained(other)
        with pytest.raises(OtherModelError) as caught:
            R2D2Retriever.open(root, other)
        self.run(caught, root)
        assert Manifest.load(root).cache == {"keep": "states", "precision": "float32"}
        assert len(R2D2Retriever.open(root, other).index) == 10
        assert Manifest.load(root).generation > 2

    @pytest.mark.parametrize("format", [1, 2])
    def test_an_index_of_an_earlier_release(self, format, model, processor, model_folder, images, tmp_path):
        root = tmp_path / "index"
        save_of_earlier(root, format, model, processor, images)
        for call in (lambda: ImageIndex(root), lambda: IndexBuilder(model, processor, root).add(images)):
            with pytest.raises(IndexFileError, match="earlier release") as caught:
                call()
        before = state_of(root)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="no readable picture"):
            IndexBuilder(model, processor, root).add(tmp_path / "empty", rebuild=True)
        assert state_of(root) == before
        self.run(caught, root)
        assert len(R2D2Retriever.open(root).index) == 9
        assert not (root / "shards").exists()

    def test_a_torn_file(self, model, processor, model_folder, images, tmp_path):
        root = tmp_path / "index"
        IndexBuilder(model, processor, root).add(images)
        next((root / "data").glob("*.embeds")).write_bytes(b"torn")
        with pytest.raises(IndexFileError, match="is torn") as caught:
            R2D2Retriever.open(root)
        self.run(caught, root)
        assert len(R2D2Retriever.open(root).index) == 9

    def test_a_file_of_another_user_is_not_torn(self, model, processor, images, tmp_path, monkeypatch):
        import pyarrow as pa

        IndexBuilder(model, processor, tmp_path / "index").add(images)

        def refuse(path, *_):
            raise PermissionError(13, f"Failed to open local file {path!r}")

        monkeypatch.setattr(pa, "memory_map", refuse)
        with pytest.raises(PermissionError, match=r"may not be read by this user: Permission denied$"):
            ImageIndex(tmp_path / "index")

    def test_searching_goes_on_until_then(self, model, processor, images, tmp_path, monkeypatch):
        root = tmp_path / "index"
        IndexBuilder(model, processor, root).add(images)
        torch.manual_seed(7)
        opened = []

        def look(count, doing):
            opened.append(len(R2D2Retriever.open(root, model, processor).index))

        IndexBuilder(tiny_model(), processor, root, batch_size=4, progress=look).add(images, rebuild=True)
        assert opened
        assert set(opened) == {9}

    def run(self, caught, root):
        """Run the commands of a message, as a shell would read them."""
        commands = str(caught.value).partition("r2d2 index ")
        assert "\n" not in str(caught.value)
        for command in f"{commands[1]}{commands[2]}".split(" && "):
            words = shlex.split(command)
            assert words[:2] == ["r2d2", "index"]
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, (result.output, result.exception)


def test_a_page_or_retriever_already_open_goes_on(builder, model, processor, images, tmp_path):
    """Between the opening of the index and the reading of its vectors a writer replaces everything."""
    builder(vectors="hnsw").add(images)
    index = ImageIndex(tmp_path / "index")
    builder(vectors="ivf").remove(["a.png"])
    retriever = R2D2Retriever(model, processor, index)
    assert len(retriever.search("一只猫", top_k=99)[0].hits) == 9


def test_search_says_what_is_gone(model_folder, images, tmp_path):
    R2D2Retriever.build(images, model_folder, tmp_path / "index", keep="states")
    (images / "a.png").unlink()
    result = CliRunner().invoke(app, ["search", str(tmp_path / "index"), "猫"])
    assert result.exit_code == 0
    assert f"1 of 9 pictures found are no longer where they were, such as {images / 'a.png'}" in result.stderr
    arguments = ["index", str(images), "--output", str(tmp_path / "index")]
    assert "1 are no longer where they were, such as a.png" in CliRunner().invoke(app, arguments).output
