"""The plan of a change: of any history of a folder it leaves nothing to do once it is applied, and loses no picture."""

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from modeling_r2d2.search.images import digest_of, list_images
from modeling_r2d2.search.plan import Known, make_plan
from modeling_r2d2.search.remaking import source_words

NAMES = st.sampled_from(["a.png", "b.png", "c/d.png"])
CONTENTS = st.sampled_from([b"one picture", b"two picture"])  # of one size, as bitmaps are
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, CONTENTS),
    st.tuples(st.just("touch"), NAMES),
    st.tuples(st.just("delete"), NAMES),
    st.tuples(st.just("rename"), NAMES, NAMES),
    st.tuples(st.just("move the folder")),
    st.tuples(st.just("kill"), st.integers(0, 3)),
    st.tuples(st.just("run"), st.booleans()),
)


class Collection:
    """A folder, and an index of it that holds no vectors."""

    def __init__(self, root: Path):
        self.root, self.folder, self.time = root, root / "0", 10**18
        self.known: dict[str, Known] = {}
        self.pending: dict[str, Known] = {}
        self.rows = 0
        self.write("a.png", b"one picture")

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.touch(name)

    def touch(self, name):
        self.time += 10**9
        if (self.folder / name).exists():
            os.utime(self.folder / name, ns=(self.time, self.time))

    def delete(self, name):
        if len(self.files()) > 1:
            (self.folder / name).unlink(missing_ok=True)

    def rename(self, old, new):
        if (self.folder / old).exists():
            (self.folder / new).parent.mkdir(exist_ok=True)
            os.replace(self.folder / old, self.folder / new)

    def move(self):
        self.folder = self.folder.rename(self.root / str(int(self.folder.name) + 1))

    def files(self):
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): digest_of(path.read_bytes()) for path in found}

    def plan(self, prune=False):
        words = source_words(self.folder, {})
        return make_plan(list_images(self.folder), self.known, words, self.pending, prune=prune)

    def encoded(self, images, part):
        return {image.id: Known((part, row), image, digest_of(image.read())) for row, image in enumerate(images)}

    def kill(self, count):
        """A run that encodes a few pictures and ends."""
        self.rows += 1
        self.pending = {**self.pending, **self.encoded(self.plan().encode[:count], -self.rows)}

    def run(self, prune):
        plan = self.plan(prune)
        made = self.encoded(plan.encode, 0)
        leaving = set(plan.leaving(made))
        kept = [each for each in plan.known.values() if each.place not in leaving]
        kept += [each for each in plan.pending.values() if each.place in plan.keep]
        kept = [Known(each.place, plan.keep.get(each.place) or each.image, each.content) for each in kept]
        rows = [*kept, *made.values()]
        assert len({each.image.id for each in rows}) == len(rows), "two rows of one id"
        before, self.known, self.pending = self.known, {}, {}
        for row, each in enumerate(rows):
            self.known[each.image.id] = Known(row, each.image, each.content)
        self.check(plan, before, prune)

    def check(self, plan, before, prune):
        files = self.files()
        for name, content in files.items():
            held = self.known[name]
            assert held.content == content
            assert os.path.samefile(held.image.path, self.folder / name)
            assert held.image.state() is None
        others = self.known.keys() - files.keys()
        if prune:
            assert not others
        else:  # what is no longer in the folder stays, unless it is the same as what now has another id
            lost = before.keys() - self.known.keys()
            assert {before[id].content for id in lost} <= set(files.values())
        assert len(plan.encode) + plan.unchanged + plan.resumed == len(files)
        again = self.plan(prune)
        assert again.is_empty
        assert (again.unchanged, again.moved, again.leaving(())) == (len(files), 0, [])


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=14))
@example([("run", False), ("rename", "a.png", "b.png"), ("write", "c/d.png", b"one picture")])  # one moved, one copied
@example([("write", "b.png", b"two picture"), ("run", False), ("rename", "b.png", "a.png")])  # its name was taken
def test_any_history(steps):
    root = Path(tempfile.mkdtemp())
    try:
        collection = Collection(root)
        for name, *values in [*steps, ("run", False), ("run", True)]:
            getattr(collection, "move" if name == "move the folder" else name)(*values)
    finally:
        shutil.rmtree(root)


def test_nothing_is_written(tmp_path):
    collection = Collection(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert [image.id for image in collection.plan().encode] == ["a.png"]
    assert sorted(tmp_path.rglob("*")) == before


def test_other_columns_are_followed_without_encoding(tmp_path):
    """Of a list whose dates were corrected, the rows are remembered otherwise."""
    Collection(tmp_path)
    listed = tmp_path / "list.jsonl"
    listed.write_text('{"image": "0/a.png", "year": 2024}', encoding="utf-8")

    def plan(known):
        return make_plan(list_images(listed), known, source_words(listed, {}))

    (image,) = plan({}).encode
    assert image.metadata == '{"year": 2024}'
    known = {image.id: Known(0, image, digest_of(image.read()))}
    assert plan(known).is_empty
    listed.write_text('{"image": "0/a.png", "year": 2025}', encoding="utf-8")
    changed = plan(known)
    assert (changed.encode, changed.unchanged, changed.moved) == ([], 1, 0)
    assert changed.keep[0].metadata == '{"year": 2025}'
