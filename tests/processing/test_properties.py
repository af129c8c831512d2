"""Files and orders drawn at random: what is written is read back, bad lines are named, files of others stay."""

import contextlib
import csv
import io
import json
import re
import tarfile
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modeling_r2d2.processing.datasets.delimited import read_delimited
from modeling_r2d2.processing.datasets.jsonl import read_jsonl
from modeling_r2d2.processing.datasets.records import PLAIN, RawPair, Reading, stable_id, stable_ids
from modeling_r2d2.processing.datasets.report import Note, Problem
from modeling_r2d2.processing.datasets.webdataset import read_tar
from modeling_r2d2.processing.files.printable import printable
from modeling_r2d2.processing.files.writing import STAMP, claim_folder, remove_owned, staged_folder
from modeling_r2d2.processing.sampling import batched_permutation

# a replacement character in a file stands for bytes that somebody could not decode
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufffd")
TEXTS = st.text(CHARACTERS, max_size=12).map(lambda text: f"一{text}猫")
ROWS = st.tuples(TEXTS.map(lambda name: f"{name}.png"), TEXTS, TEXTS)
#: as written, and whether the reader must be told
ENCODINGS = st.sampled_from(
    [("utf-8", False), ("utf-8-sig", False), ("utf-16", False), ("gb18030", True), ("utf-16-be", True)]
)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def read(reader, data: bytes, suffix: str, reading: Reading = PLAIN, **kwargs) -> list[RawPair | Problem]:
    """What a reader makes of these bytes, without its notes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x{suffix}")
        path.write_bytes(data)
        return [item for item in reader(path, reading, **kwargs) if not isinstance(item, Note)]


def fields(pair: RawPair) -> tuple:
    return pair.image, pair.texts[0], pair.image_id


# -- order ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 9), st.integers(0, 99))
def test_batches_of_a_stream_are_distinct_where_they_can_be(counts, batch, seed):
    ids = np.repeat(np.arange(len(counts)), counts)
    size = len(ids)
    orders = [
        batched_permutation(ids, batch, number, lambda *key: np.random.default_rng((seed, *key))) for number in range(4)
    ]
    for order in orders:
        assert sorted(order) == list(range(size))
    assume(size >= batch)
    whole = min((size - -number * size % batch) // batch for number in range(4))
    stream = ids[np.concatenate(orders)]
    if len(counts) >= batch and max(counts) <= whole:
        for block in stream[: len(stream) // batch * batch].reshape(-1, batch):
            assert len(set(block)) == batch
    if size % batch == 0:  # then no batch is of two passes
        for order in orders:
            of_blocks = [Counter(block) for block in ids[order].reshape(-1, batch)]
            for one in range(len(counts)):
                assert max(block[one] for block in of_blocks) - min(block[one] for block in of_blocks) <= 1


# -- readers --------------------------------------------------------------------------------------------

BAD_LINES = [b"{", b"17", b"[1, 2]", b'"x"', b'{"image": "a.png"}', b'{"image": 3, "text": "x"}', b'{"text": "x"}']
BAD_LINES += [b'{"image": "a.png", "text": " "}', b'{"image": "", "text": "x"}', b'{"image": "\xff.png", "text": "x"}']


def json_line(row: tuple[str, str, str], escaped: bool) -> str:
    return json.dumps(dict(zip(("image", "text", "image_id"), row, strict=True)), ensure_ascii=escaped)


@given(st.lists(ROWS, min_size=1, max_size=8), ENCODINGS, LINE_ENDS, st.booleans(), st.booleans())
def test_json_lines_are_read_back(rows, encoding, end, escaped, ended):
    text = end.join(json_line(row, escaped) for row in rows) + (end if ended else "")
    found = read(read_jsonl, text.encode(encoding[0]), ".jsonl", Reading(encoding=encoding[0] if encoding[1] else None))
    assert [fields(item) for item in found] == rows
    assert [item.line for item in found] == list(range(1, len(rows) + 1))


@given(ROWS, st.lists(ROWS | st.sampled_from([*BAD_LINES, b"", b"  "]), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_bad_json_lines_are_named(first, rest, end):
    lines = [each if isinstance(each, bytes) else json_line(each, False).encode() for each in (first, *rest)]
    found = read(read_jsonl, end.join(lines), ".jsonl")
    bad = [item.line for item in found if isinstance(item, Problem)]
    assert bad == [number for number, line in enumerate(lines, start=1) if line in BAD_LINES]
    assert [fields(item) for item in found if isinstance(item, RawPair)] == [
        row for row in (first, *rest) if not isinstance(row, bytes)
    ]


def delimited(rows: list, delimiter: str) -> tuple[str, list[int]]:
    """The text of a file with a header, and the line where each row begins."""
    lines, begins = ["image,text,id".replace(",", delimiter)], []
    for row in rows:
        begins.append(1 + len(re.findall(r"\r\n|\r|\n", "\r\n".join([*lines, ""]))))
        if delimiter == "\t":
            lines.append("\t".join(row))
        else:
            out = io.StringIO(newline="")
            csv.writer(out, lineterminator="").writerow(row)
            # of the characters that must be quoted, the writer knows only those that it writes itself
            lines.append(out.getvalue() if not re.search("[\r\n]", "".join(row)) else quoted(row))
    return "\r\n".join(lines), begins


def quoted(row: tuple[str, ...]) -> str:
    return ",".join('"{}"'.format(field.replace('"', '""')) for field in row)


BAD_ROWS = [("a.png",), ("a.png", "猫", "1", "2"), ("", "猫", "1"), ("a.png", " ", "1")]


@given(st.lists(ROWS | st.sampled_from(BAD_ROWS), max_size=8), ENCODINGS)
@example([('一",\r猫.png', '一"\r\n猫', "一\n猫"), BAD_ROWS[0]], ("utf-8", False))
def test_csv_is_read_back_and_bad_rows_are_named(rows, encoding):
    text, begins = delimited(rows, ",")
    found = read(
        read_delimited, text.encode(encoding[0]), ".csv", Reading(encoding=encoding[0] if encoding[1] else None)
    )
    assert [item.line for item in found] == begins
    for row, item in zip(rows, found, strict=True):
        assert isinstance(item, Problem) if row in BAD_ROWS else fields(item) == row


@given(st.lists(ROWS | st.sampled_from(BAD_ROWS), max_size=8), ENCODINGS)
def test_tsv_is_read_back_and_bad_rows_are_named(rows, encoding):
    rows = [tuple(re.sub("[\t\r\n]", " ", field) for field in row) for row in rows]
    text, begins = delimited(rows, "\t")
    reading = Reading(encoding=encoding[0] if encoding[1] else None)
    found = read(read_delimited, text.encode(encoding[0]), ".tsv", reading, delimiter="\t")
    assert [item.line for item in found] == begins
    for row, item in zip(rows, found, strict=True):
        assert isinstance(item, Problem) if row in BAD_ROWS else fields(item) == row


def is_utf8(line: bytes) -> bool:
    return line.decode("utf-8", "replace").encode("utf-8") == line


@given(
    st.lists(st.text("一二三四五六七八九十猫狗马鱼鸟山水火木人大小", min_size=4, max_size=20), min_size=2, max_size=9)
)
@example(["一一一一", "一只小猫"])  # the first is UTF-8 by chance
def test_files_of_chinese_windows_are_recognised(captions):
    lines = [json.dumps({"image": "a.png", "text": each}, ensure_ascii=False).encode("gbk") for each in captions]
    assume(2 * sum(map(is_utf8, lines)) <= len(lines))
    assert [item.texts[0] for item in read(read_jsonl, b"\r\n".join(lines), ".jsonl")] == captions


STEMS = st.text("abcXYZ019_-猫狗图", min_size=1, max_size=8)
SAMPLES = st.lists(st.tuples(STEMS, st.binary(min_size=1, max_size=900), TEXTS), max_size=6, unique_by=lambda s: s[0])
WRITING = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def shard(samples: list[tuple[str, bytes, str]], layout: int, packing: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packing}", format=layout) as archive:
        for stem, image, text in samples:
            for suffix, data in (("png", image), ("txt", text.encode())):
                header = tarfile.TarInfo(f"{stem}.{suffix}")
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return out.getvalue()


def read_shard(data: bytes) -> list[RawPair | Problem]:
    return read(lambda path, reading: read_tar(str(path), reading), data, ".tar")


def as_written(samples: list[tuple[str, bytes, str]]) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(image, (text.replace("\r\n", "\n").replace("\r", "\n"),)) for _, image, text in samples]


@given(SAMPLES, WRITING, st.sampled_from(["", "gz", "xz"]))
def test_tar_shards_are_read_back(samples, layout, packing):
    found = read_shard(shard(samples, layout, packing))
    assert [(item.image, item.texts) for item in found] == as_written(samples)
    assert [item.line for item in found] == list(range(1, len(samples) + 1))


@given(SAMPLES, WRITING, st.sampled_from(["", "gz", "bz2"]), st.floats(0, 1, exclude_max=True))
def test_of_a_shard_that_was_cut_nothing_is_made_up_and_nothing_lost_in_silence(samples, layout, packing, place):
    data = shard(samples, layout, packing)
    found = read_shard(data[: int(place * len(data))])
    pairs = [(item.image, item.texts) for item in found if isinstance(item, RawPair)]
    assert pairs == as_written(samples)[: len(pairs)]
    assert len(pairs) == len(samples) or any(item.incomplete for item in found if isinstance(item, Problem))


@given(SAMPLES, WRITING, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5))
def test_a_damaged_shard_is_read_to_its_end(samples, layout, damage):
    data = bytearray(shard(samples, layout, ""))
    for place, value in damage:
        data[int(place * len(data))] = value
    assert all(isinstance(item, RawPair | Problem) for item in read_shard(bytes(data)))


# -- names and ids --------------------------------------------------------------------------------------


@given(st.text(), st.booleans())
def test_printable(text, lines):
    shown = printable(text, lines)
    assert printable(shown, lines) == shown
    unsafe = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert not [
        c
        for c in shown
        if unicodedata.category(c) in unsafe and c not in ("\u200c\u200d\n" if lines else "\u200c\u200d")
    ]
    if not any(unicodedata.category(c) in unsafe for c in text):
        assert shown == text


@given(st.lists(st.integers() | st.text() | st.integers().map(str)))
def test_stable_ids(keys):
    ids = stable_ids(keys)
    assert ids.tolist() == [stable_id(str(key)) for key in keys]
    assert (ids >= 0).all()
    assert len(set(ids.tolist())) == len(set(map(str, keys)))


# -- whose a file is ------------------------------------------------------------------------------------

NAMES = st.sampled_from(["config.json", "model.bin", "adapter/weights.bin", "adapter/deep/x.txt", "notes.txt"])
CONTENTS = st.sampled_from(["a", "b", "c"])


class SharedFolder(RuleBasedStateMachine):
    """A person and this package write to one folder in turn; what the person wrote stays."""

    @initialize()
    def empty(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.root = Path(self.temporary.name)
        self.ours: dict[str, str] = {}
        self.theirs: dict[str, str] = {}

    def teardown(self):
        self.temporary.cleanup()

    @rule(files=st.dictionaries(NAMES, CONTENTS, min_size=1), overwrite=st.booleans(), failing=st.booleans())
    def command(self, files, overwrite, failing):
        tops = {name.split("/")[0] for name in files}
        foreign = {name.split("/")[0] for name in self.theirs}
        try:
            claim_folder(self.root, held=(), needs=tops, overwrite=overwrite)
        except FileExistsError:
            assert foreign if not overwrite else foreign & tops
            return
        assert not foreign & tops
        assert overwrite or not foreign
        try:
            with staged_folder(self.root, "test") as partial:
                for name, content in files.items():
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_text(content)
                if failing:
                    raise InterruptedError
        except InterruptedError:
            return
        self.ours |= files

    @rule(name=NAMES, content=CONTENTS)
    def person_writes(self, name, content):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(content)
        if self.ours.get(name) != content:  # edited; the same bytes as ours are still ours
            self.theirs[name] = content
        else:
            self.theirs.pop(name, None)

    @rule(name=NAMES)
    def person_removes(self, name):
        (self.root / name).unlink(missing_ok=True)
        self.theirs.pop(name, None)
        for folder in ("adapter/deep", "adapter"):
            with contextlib.suppress(OSError):  # not there, or not empty
                (self.root / folder).rmdir()

    @rule(names=st.sets(NAMES))
    def command_cleans(self, names):
        there = {name for name in self.ours if name not in self.theirs and (self.root / name).exists()}
        assert set(remove_owned(self.root, names)) == there & names
        for name in there & names:
            del self.ours[name]

    @invariant()
    def what_is_theirs_stays(self):
        if hasattr(self, "root"):
            assert not [path for path in self.root.rglob("*") if "partial" in path.name]
            held = {
                path.relative_to(self.root).as_posix(): path.read_text()
                for path in self.root.rglob("*")
                if path.is_file() and path.name != STAMP
            }
            assert {name: held.get(name) for name in self.theirs} == self.theirs
            for name in held.keys() - self.theirs.keys():
                assert held[name] == self.ours[name]


TestSharedFolder = SharedFolder.TestCase
