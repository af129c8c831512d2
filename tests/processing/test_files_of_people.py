"""Collections as people have them: names with dots, other encodings, junk of systems, damage, odd records.

Whatever a source is, pairs of training and pictures of an index come from the same readers, so both are looked at.
"""

import bz2
import gzip
import io
import json
import os
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.report import Note, Problem
from modeling_r2d2.search.images import CollectionImage, list_images

from .conftest import png
from .test_streaming import write_tar

tolerant = partial(load_pairs, max_error_rate=1.0)


def texts_of(pairs) -> list:
    """The texts of a set or a stream."""
    return pairs.first_texts() if hasattr(pairs, "first_texts") else [sample["text"] for sample in pairs]


def listed(source, **reading) -> tuple[dict[str, tuple[str, ...]], list[Problem], list[Note]]:
    """Captions of each picture of an index by id, what was wrong, and what was noted."""
    notes: list[Note] = []
    items = list(list_images(source, note=notes.append, **reading))
    images = [item for item in items if isinstance(item, CollectionImage)]
    assert len({image.id for image in images}) == len(images)
    return {image.id: image.texts for image in images}, [i for i in items if isinstance(i, Problem)], notes


def counts(notes) -> Counter:
    return sum((Counter(dict(note.counts)) for note in notes), Counter())


class TestNamesInShards:
    NAMES = ["1.5升.png", "1.6升.png", "截屏2024-05-01 12.30.45.png", "截屏2024-05-01 12.30.46.png", "v1.final.png"]

    def test_names_with_dots_are_whole(self, tmp_path):
        members = []
        for number, name in enumerate(self.NAMES):
            members += [(name, png(number)), (f"{Path(name).stem}.txt", f"图{number}")]
        path = write_tar(tmp_path / "x.tar", members)
        images, problems, notes = listed(path)
        assert images == {f"x.tar/{name}": (f"图{number}",) for number, name in enumerate(self.NAMES)}
        assert problems == notes == []
        pairs = tolerant(path)
        samples = list(pairs)
        assert [sample["text"] for sample in samples] == [f"图{number}" for number in range(5)]
        assert len({sample["image_id"] for sample in samples}) == 5
        assert pairs.report.errors == 0

    def test_images_alone(self, tmp_path):
        """A folder of photographs as a tar: no captions, so no name's part is a field."""
        names = [*self.NAMES, "a.png", "a.edited.png", "2024.05.01.png", "2024.05.02.png", "无后缀.的.png"]
        path = write_tar(tmp_path / "x.tar", [(name, png(number)) for number, name in enumerate(names)])
        assert list(listed(path)[0]) == [f"x.tar/{name}" for name in names]

    def test_one_name_and_two_suffixes(self, tmp_path):
        path = write_tar(tmp_path / "x.tar", [("杯子.jpg", png(0)), ("杯子.png", png(1)), ("杯子.txt", "一只杯子")])
        assert listed(path)[0] == {"x.tar/杯子.jpg": ("一只杯子",), "x.tar/杯子.png": ("一只杯子",)}
        samples = list(load_pairs(path))
        assert [sample["text"] for sample in samples] == ["一只杯子"] * 2
        assert samples[0]["image_id"] != samples[1]["image_id"]
        assert samples[0]["image"].tobytes() != samples[1]["image"].tobytes()

    def test_fields_of_a_standard_shard(self, tmp_path):
        members = []
        for number in range(3):
            members += [
                (f"{number:04}.jpg", png(number)),
                (f"{number:04}.seg.png", png(10 + number)),
                (f"{number:04}.txt", f"图{number}"),
                (f"{number:04}.cls", "3"),
            ]
        path = write_tar(tmp_path / "x.tar", members)
        pairs = tolerant(path)
        assert texts_of(pairs) == ["图0", "图1", "图2"]
        assert pairs.report.errors == 0
        assert "3 .seg.png" in pairs.report.summary()
        assert "ignored: 3 .cls" in pairs.report.summary()
        images, problems, notes = listed(path)
        assert list(images) == [f"x.tar/{n:04}.jpg" for n in range(3)]
        assert problems == []
        assert counts(notes) == {".seg.png": 3, ".cls": 3}

    def test_a_stream_tells_once_what_it_ignores(self, tmp_path, caplog):
        for shard in range(3):
            members = [(f"{shard}.png", png(shard)), (f"{shard}.txt", "图"), (f"{shard}.cls", "3")]
            write_tar(tmp_path / f"{shard}.tar", members)
        pairs = load_pairs(tmp_path / "*.tar")
        assert len(list(pairs)) == len(list(pairs)) == 3
        assert caplog.text.count("ignored: 1 .cls") == 1
        assert pairs.report.notes == ["ignored: 6 .cls"]

    @pytest.mark.parametrize("names", [("a.image.png", "a.txt"), ("a.png", "a.caption.txt"), ("a.png", "a.png.txt")])
    def test_the_only_image_and_the_only_text(self, tmp_path, names):
        path = write_tar(tmp_path / "x.tar", [(names[0], png(0)), (names[1], "图")])
        assert texts_of(load_pairs(path)) == ["图"]
        assert listed(path)[0] == {f"x.tar/{names[0]}": ("图",)}

    def test_many_names_that_begin_alike_are_not_held_in_memory(self, tmp_path):
        members = [(f"IMG.{'abcdefghij'[n // 10]}{'abcdefghij'[n % 10]}.png", png(n)) for n in range(100)]
        assert len(listed(write_tar(tmp_path / "x.tar", members))[0]) == 100

    def test_junk(self, tmp_path):
        junk = ["__MACOSX/._a.png", "._a.png", "b/@eaDir/a.png", ".ipynb_checkpoints/a.png", "Thumbs.db", "b/.x/a.png"]
        path = write_tar(tmp_path / "x.tar", [("a.png", png(0)), ("a.txt", "图"), *((name, png(1)) for name in junk)])
        assert listed(path) == ({"x.tar/a.png": ("图",)}, [], [])
        pairs = tolerant(path)
        assert texts_of(pairs) == ["图"]
        assert pairs.report.errors == 0

    def test_links_and_names_out_of_the_archive(self, tmp_path):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            for name in ("./a.png", "/etc/b.png", "../c.png", f"{'长' * 90}/d.png"):
                info = tarfile.TarInfo(name)
                info.size = len(png(0))
                archive.addfile(info, io.BytesIO(png(0)))
            for name, kind in (
                ("soft.png", tarfile.SYMTYPE),
                ("hard.png", tarfile.LNKTYPE),
                ("pipe.png", tarfile.FIFOTYPE),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, "./a.png"
                archive.addfile(info)
        images, problems, _ = listed(path)
        assert list(images) == ["x.tar/a.png", "x.tar/etc/b.png", "x.tar/../c.png", f"x.tar/{'长' * 90}/d.png"]
        assert [Path(problem.source).name for problem in problems] == ["soft.png", "hard.png", "pipe.png"]
        assert not (tmp_path.parent / "c.png").exists()

    def test_names_in_gbk(self, tmp_path):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w", encoding="gbk", format=tarfile.GNU_FORMAT) as archive:
            for name, data in (("红色杯子.png", png(0)), ("红色杯子.txt", "红色的杯子".encode("gbk"))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        images, problems, notes = listed(path)
        assert (images, problems) == ({"x.tar/红色杯子.png": ("红色的杯子",)}, [])
        assert any("GBK" in note.reason for note in notes)
        assert texts_of(load_pairs(path)) == ["红色的杯子"]


class TestDamagedShards:
    @pytest.fixture
    def whole(self, tmp_path) -> bytes:
        members = [m for n in range(4) for m in ((f"{n}.png", png(n)), (f"{n}.txt", f"图{n}"))]
        return write_tar(tmp_path / "whole.tar", members).read_bytes()

    def ends(self, whole: bytes) -> list[int]:
        """Where the members end, with their padding."""
        with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
            return [member.offset for member in archive.getmembers()][1:] + [archive.offset - 0]

    @pytest.mark.parametrize("place", ["border", "padding", "header", "data", "last border"])
    def test_cut_anywhere(self, whole, tmp_path, place):
        third = self.ends(whole)[3]  # the end of the second sample
        cut = {"border": third, "padding": third - 9, "header": third + 99, "data": third + 600}.get(place)
        cut = len(whole.rstrip(b"\0")) // 512 * 512 + 512 if cut is None else cut
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        images, problems, _ = listed(path)
        assert len(images) == (4 if place == "last border" else 2)
        assert problems[-1].incomplete
        pairs = tolerant(path)
        assert len(list(pairs)) >= 2
        assert pairs.report.incomplete

    @pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
    def test_compressed(self, whole, tmp_path, pack):
        path = tmp_path / "x.tar.gz"
        for data, complete in (
            (pack(whole), True),
            (pack(whole)[:-40], False),
            (pack(whole[:5000]) + pack(whole[5000:]), True),
        ):
            path.write_bytes(data)
            pairs = tolerant(path)
            assert (len(list(pairs)) == 4) >= complete
            assert pairs.report.incomplete != complete

    def test_a_damaged_header_in_the_middle(self, whole, tmp_path):
        place = self.ends(whole)[1]
        path = tmp_path / "x.tar"
        path.write_bytes(whole[:place] + b"\xff" * 512 + whole[place + 512 :])
        images, problems, _ = listed(path)
        assert list(images) == ["x.tar/0.png", "x.tar/2.png", "x.tar/3.png"]
        assert any(problem.incomplete for problem in problems)

    @pytest.mark.parametrize("place", [0, 1, 3])
    def test_a_negative_size(self, whole, tmp_path, place):
        """Python's own reader goes back and reads such an archive for ever."""
        start = ([0] + self.ends(whole))[place]
        header = bytearray(whole[start : start + 512])
        header[124:136] = (-1024).to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = tmp_path / "x.tar"
        path.write_bytes(whole[:start] + bytes(header) + whole[start + 512 :])
        images, problems, _ = listed(path)
        assert len(images) == (4 if place else 0)  # it was a text's header
        assert any(problem.incomplete for problem in problems)

    def test_endless_members_and_endless_nothing(self, tmp_path, monkeypatch):
        from modeling_r2d2.processing.datasets import tar_files

        monkeypatch.setattr(tar_files, "LARGEST_MEMBER", 1000)
        path = write_tar(tmp_path / "x.tar", [("1.png", png(1)), ("2.png", bytes(1001)), ("3.png", png(3))])
        with open(path, "ab") as file:
            file.truncate(10 << 30)  # of a file system with holes
        images, problems, _ = listed(path)
        assert list(images) == ["x.tar/1.png", "x.tar/3.png"]
        assert [problem.reason for problem in problems] == ["1,001 bytes are too many for one member"]

    def test_one_behind_another(self, whole, tmp_path):
        second = write_tar(tmp_path / "second.tar", [("9.png", png(9)), ("9.txt", "图9")]).read_bytes()
        path = tmp_path / "x.tar"
        path.write_bytes(whole + second)
        assert texts_of(load_pairs(path)) == ["图0", "图1", "图2", "图3", "图9"]
        image = next(p for p in list_images(path) if p.id == "x.tar/9.png")
        assert path.read_bytes()[image.offset :][: image.size] == png(9)

    def test_a_newer_version_of_a_member(self, tmp_path):
        members = [("a.png", png(1)), ("a.txt", "旧"), ("a.png", png(2)), ("a.txt", "新")]
        path = write_tar(tmp_path / "x.tar", members)
        assert texts_of(load_pairs(path)) == ["旧", "新"]
        found = [(p.texts, p.data) for p in list_images(path)]
        assert found == [(("旧",), png(1)), (("新",), png(2))]

    @pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.csv.zip", "x.csv", "x.jsonl"])
    def test_a_zip(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(b"PK\x03\x04" + bytes(600))
        if name == "x.tar":
            assert "zip" in listed(path)[1][0].reason
        else:
            for read in (load_pairs, lambda source: list(list_images(source))):
                with pytest.raises(ValueError, match=r"zip archive.*: unpack it"):
                    read(path)


class TestTables:
    HEADERS = [
        "image,text",
        "image, text",
        "﻿image,text",
        "Image,Text",
        "IMAGE , Caption",
        "filename,title",
        "filepath,title",
        "file_name,caption",
        "图片,标题",
        "图片,描述",
        '"image","text"',
        "image,text,",
    ]

    @pytest.mark.parametrize("header", HEADERS)
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_headers_and_line_ends(self, image_folder, header, end):
        rows = [header, "0.png,图0", "", '1.png, "图,1"', "2.png,图2,,", ",,"]
        path = image_folder / "data.csv"
        path.write_bytes(end.join(rows).encode())
        pairs = load_pairs(path)
        assert texts_of(pairs) == ["图0", "图,1", "图2"]
        found, problems, notes = listed(path)
        assert found == {"0.png": ("图0",), "1.png": ("图,1",), "2.png": ("图2",)}
        assert problems == []
        taken = [note.reason for note in notes]
        assert bool(taken) == (header in self.HEADERS[3:7] + self.HEADERS[8:10])
        assert all("is taken for the" in reason for reason in taken)

    def test_an_index_says_which_columns_are_no_captions(self, image_folder):
        path = image_folder / "data.csv"
        for header, message in (("image,备注,编号", "['备注', '编号']"), ("image,txt,x", None), ("image", None)):
            path.write_text(f"{header}\n0.png{',好' * header.count(',')}\n", encoding="utf-8")
            reasons = [note.reason for note in listed(path)[2] if "captions" in note.reason]
            assert len(reasons) == bool(message)
            assert all(message in reason and "--text-column" in reason for reason in reasons)

    def test_two_candidates(self, image_folder):
        path = image_folder / "data.csv"
        path.write_text("filename,caption,标题\n0.png,a,b\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"the text may be in 'caption' or '标题'.*--text-column"):
            load_pairs(path)
        with pytest.raises(ValueError, match=r"--text-column"):
            listed(path)
        assert texts_of(load_pairs(path, columns={"text": "标题"})) == ["b"]
        assert listed(path, columns={"text": "标题"})[0] == {"0.png": ("b",)}
        path.write_text("image,text,text\n0.png,a,b\n", encoding="utf-8")
        with pytest.raises(ValueError, match=r"several columns are called 'text'"):
            load_pairs(path)

    @pytest.mark.parametrize("encoding", ["gbk", "gb18030", "utf-16", "utf-16-le", "utf-8-sig"])
    @pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "captions.txt"])
    def test_encodings(self, image_folder, encoding, name):
        captions = ["一只小狗", "红色的杯子", "山上的雪"]
        mark = "\t" if name != "data.csv" else ","
        rows = [f"{n}.png{mark}{caption}" for n, caption in enumerate(captions)]
        if name == "data.jsonl":
            rows = [json.dumps({"image": f"{n}.png", "text": c}, ensure_ascii=False) for n, c in enumerate(captions)]
        elif name != "captions.txt":
            rows.insert(0, f"image{mark}text")
        path = image_folder / name
        path.write_bytes("\r\n".join(rows).encode(encoding))
        source = image_folder if name == "captions.txt" else path
        for reading in ({}, {"encoding": encoding}):
            pairs = load_pairs(source, **reading)
            assert texts_of(pairs) == captions
            guessed = "read as" in pairs.report.summary()
            assert guessed == (not reading and encoding in ("gbk", "gb18030", "utf-16-le"))
            found, problems, _ = listed(source, **reading)
            assert [found[f"{n}.png"] for n in range(3)] == [(caption,) for caption in captions]
            assert problems == []

    def test_what_is_not_guessed_says_what_to_do(self, image_folder):
        path = image_folder / "data.csv"
        path.write_bytes("image,text\n0.png,開啟檔案的視窗\n1.png,臺灣的夜景與燈\n".encode("big5"))
        with pytest.raises(ValueError, match=r"--encoding gb18030"):
            load_pairs(path)
        assert texts_of(load_pairs(path, encoding="big5")) == ["開啟檔案的視窗", "臺灣的夜景與燈"]
        with pytest.raises(ValueError, match="encoding is 'gkb'"):
            load_pairs(path, encoding="gkb")

    def test_a_single_bad_row_is_that_rows_problem(self, image_folder):
        path = image_folder / "data.csv"
        path.write_bytes("image,text\n0.png,一只小狗\n1.png,".encode() + "红色的杯子".encode("gbk") + b"\n2.png,c\n")
        pairs = tolerant(path)
        assert texts_of(pairs) == ["一只小狗", "c"]
        assert [problem.line for problem in pairs.report.problems] == [3]
        assert "--encoding" in pairs.report.summary()

    def test_paths_of_windows_and_addresses(self, image_folder):
        (image_folder / "猫 1").mkdir()
        (image_folder / "猫 1" / "a.png").write_bytes(png(7))
        images = [
            "猫 1\\a.png",
            f"D:\\数据\\{image_folder.name}\\猫 1\\a.png",
            "\\\\server\\share\\0.png",
            (image_folder / "猫 1" / "a.png").as_uri(),
            "E:\\nowhere\\x.png",
            "https://example.org/1.png",
        ]
        path = image_folder / "data.jsonl"
        rows = [{"image": image, "text": f"图{n}"} for n, image in enumerate(images)]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        pairs = tolerant(path)
        assert texts_of(pairs) == ["图0", "图1", "图2", "图3"]
        assert [problem.line for problem in pairs.report.problems] == [5, 6]
        assert "--image-root" in pairs.report.problems[0].reason
        assert "fetch" in pairs.report.problems[1].reason
        assert texts_of(tolerant(path, streaming=True)) == ["图0", "图1", "图2", "图3"]
        found, problems, _ = listed(path)
        assert found["猫 1/a.png"] == ("图0", "图1")
        assert len(problems) == 2

    ODD = [
        {"image": {"bytes": "x"}},
        {"image": {"path": None}},
        {"image": {"width": 3}},
        {"image": "\ud83d.png"},
        {"image": "0.png", "text": "\ud83d"},
        {"image": "a\0b.png"},
        {"image": 7},
        {"image": ["0.png"]},
        {"image": float("nan")},
        {"image": True},
        {"image": "0.png", "image_id": 1.5},
        {"image": "0.png", "image_id": True},
        {"image": "0.png", "image_id": "\ud83d"},
        {"image": "0.png", "text": [["a"]]},
        {"image": "0.png", "text": {"zh": "a"}},
        {"image": "0.png", "text": 3.5},
        {"image": "0.png", "image_id": {}},
    ]

    @pytest.mark.parametrize("row", ODD)
    def test_an_odd_record_is_one_problem(self, image_folder, row):
        path = image_folder / "data.jsonl"
        rows = [{"image": "0.png", "text": "图0"}, {"text": "图", **row}, {"image": "1.png", "text": "图1"}]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for streaming in (False, True):
            pairs = tolerant(path, streaming=streaming)
            assert texts_of(pairs) == ["图0", "图1"]
            assert [problem.line for problem in pairs.report.problems] == [2]
        found, problems, _ = listed(path)
        assert list(found) == ["0.png", "1.png"]
        assert [problem.line for problem in problems] == [2]
        assert "\n" not in str(problems[0])

    @pytest.mark.parametrize("name", ["名" * 101 + ".png", "x" * 300 + "/" + "y" * 5000])
    def test_a_name_that_is_too_long(self, image_folder, name):
        path = image_folder / "data.jsonl"
        rows = [{"image": "0.png", "text": "图0"}, {"image": name, "text": "图"}, {"image": "1.png", "text": "图1"}]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        for options in ({}, {"check_images": "exists"}, {"streaming": True}):
            assert texts_of(tolerant(path, **options)) == ["图0", "图1"]
        assert len(listed(path)[0]) == 3  # what cannot be opened is reported when it is read

    @pytest.mark.parametrize("data", [b"[" * 100_000, b'{"image": "0.png", "text": ' + b"[" * 100_000, b"1" * 5000])
    def test_deep_json(self, image_folder, data):
        path = image_folder / "data.jsonl"
        path.write_bytes(b'{"image": "0.png", "text": "a"}\n' + data)
        pairs = tolerant(path)
        assert texts_of(pairs) == ["a"]
        assert len(pairs.report.problems) == len(listed(path)[1]) == 1

    @pytest.mark.parametrize("text", ["", "\n\n", "{}", "[]", "3", "null", '{\n "image": "0.png"\n}'])
    def test_wrong_top_level_is_one_error(self, image_folder, text):
        path = image_folder / "data.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"data\.json"):
            load_pairs(path)

    def test_a_record_of_many_keys_is_named_shortly(self, image_folder):
        path = image_folder / "data.jsonl"
        row = {f"\x1b[31m{'k' * 200}{number}": 1 for number in range(5000)}
        path.write_text(json.dumps({"image": "0.png", "text": "a"}) + "\n" + json.dumps(row), encoding="utf-8")
        reason = tolerant(path).report.problems[0].reason
        assert len(reason) < 2000
        assert "\x1b" not in reason

    def test_a_pipe_is_no_source(self, tmp_path):
        os.mkfifo(tmp_path / "x.csv")
        for read in (load_pairs, lambda source: list(list_images(source))):
            with pytest.raises(ValueError, match="neither a file nor a folder"):
                read(tmp_path / "x.csv")


class TestArrow:
    def test_corrupt_parquet(self, image_folder):
        import datasets

        path = image_folder / "data.parquet"
        for data in (b"", b"nothing", b"PAR1" + bytes(100) + b"PAR1"):
            path.write_bytes(data)
            for read in (load_pairs, lambda source: list(list_images(source))):
                with pytest.raises(ValueError, match=r"data\.parquet") as error:
                    read(path)
                assert "\n" not in str(error.value)
        rows = {"image": [f"{n}.png" for n in range(3)], "text": [f"图{n}" for n in range(3)]}
        datasets.Dataset.from_dict(rows).to_parquet(path)
        data = bytearray(path.read_bytes())
        data[4:40] = b"\xff" * 36  # within the first page
        path.write_bytes(bytes(data))
        for read in (load_pairs, lambda source: list(list_images(source))):
            with pytest.raises(ValueError, match=r"data\.parquet"):
                read(path)

    @pytest.mark.parametrize("harm", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
    def test_torn_data_set(self, tmp_path, harm):
        import datasets

        datasets.Dataset.from_dict({"image": ["0.png"], "text": ["a"]}).save_to_disk(tmp_path / "saved")
        for damage in (lambda file: file.write_bytes(file.read_bytes()[:5]), Path.unlink):
            damage(tmp_path / "saved" / harm)
            for read in (load_pairs, lambda source: list(list_images(source, format="dataset"))):
                with pytest.raises(ValueError, match="saved") as error:
                    read(tmp_path / "saved")
                assert "\n" not in str(error.value)


JUNK = [
    "._0.png",
    ".hidden/0.png",
    "__MACOSX/0.png",
    "a/@eaDir/0.png",
    "a/.ipynb_checkpoints/0-checkpoint.png",
    "#recycle/0.png",
    "$RECYCLE.BIN/0.png",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
]


class TestFolders:
    @pytest.fixture
    def photos(self, tmp_path) -> Path:
        """Two classes of two pictures with captions, all the junk there is, and three files that are no pictures."""
        folder = tmp_path / "photos"
        names = ["猫/1.png", "猫/2.5.png", "狗/1.PNG", "狗/a b.png"]
        for number, name in enumerate([*names, *JUNK, "猫/x.svg", "y.SVG", "z.pdf"]):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number))
        return folder

    def test_all_readers_leave_out_the_same(self, photos):
        names = ["狗/1.PNG", "狗/a b.png", "猫/1.png", "猫/2.5.png"]
        found, problems, notes = listed(photos)
        assert (list(found), problems) == (names, [])
        assert counts(notes) == {".svg": 2, ".pdf": 1}
        pairs = load_pairs(photos, format="classes")
        assert pairs.keys() == names
        assert texts_of(pairs) == ["狗", "狗", "猫", "猫"]
        assert "ignored: 2 .svg, 1 .pdf" in pairs.report.summary()
        for name in names:
            (photos / name).with_suffix(".txt").write_text(name, encoding="utf-8")
        pairs = load_pairs(photos)
        assert texts_of(pairs) == names
        assert "ignored: 2 .svg, 1 .pdf" in pairs.report.summary()
        assert listed(photos)[0] == {name: (name,) for name in names}
        lines = [f"{name}\t图" for name in names[:3]]
        (photos / "captions.txt").write_text("\n".join(lines), encoding="utf-8")
        pairs = load_pairs(photos)
        assert pairs.keys() == names[:3]
        assert "1 pictures in" in pairs.report.summary()
        assert "0 ." not in pairs.report.summary()
        places = {image.id: image.location for image in list_images(photos, note=print)}
        assert places[names[3]] == str(photos / names[3])

    def test_sidecars_in_gbk(self, photos):
        (photos / "猫/1.txt").write_bytes("一只黑色的猫".encode("gbk"))
        assert texts_of(tolerant(photos)) == ["一只黑色的猫"]
        assert listed(photos)[0]["猫/1.png"] == ("一只黑色的猫",)

    def test_a_text_that_cannot_be_read_costs_the_index_no_image(self, photos, tmp_path):
        (photos / "猫/1.txt").write_bytes(b"\xff\xfe\xfd")
        found, problems, _ = listed(photos)
        assert (found["猫/1.png"], len(found), len(problems)) == ((), 4, 1)
        members = [("1.png", png(0)), ("1.txt", b"\xff\xff"), ("2.png", png(1)), ("2.json", "{")]
        found, problems, _ = listed(write_tar(tmp_path / "x.tar", members))
        assert (len(found), len(problems)) == (2, 2)

    def test_a_folder_of_classes_read_as_pairs_says_how(self, photos):
        with pytest.raises(ValueError, match="--format classes"):
            load_pairs(photos)
        (photos / "0.png").write_bytes(png(50))
        pairs = tolerant(photos, format="classes")
        assert (len(pairs), pairs.report.errors) == (4, 1)
        with pytest.raises(ValueError, match="no split 'val'"):
            load_pairs(photos, format="classes", split="val")

    def test_linked_folders_are_read_by_training_too(self, photos, tmp_path):
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "there").symlink_to(photos / "猫")
        for name in ("1", "2.5"):
            (photos / "猫" / f"{name}.txt").write_text(name)
        assert load_pairs(tmp_path / "linked").keys() == list(listed(tmp_path / "linked")[0])

    def test_a_link_that_leads_to_itself_costs_nothing_else(self, photos):
        before = listed(photos)[0]
        (photos / "loop.png").symlink_to("loop.png")
        (photos / "loop").symlink_to("loop")
        images, problems, _ = listed(photos)
        assert {name: texts for name, texts in images.items() if name != "loop.png"} == before
        assert [problem for problem in problems if "loop.png" not in problem.source] == []
        assert len(tolerant(photos, format="classes")) == 4

    def test_a_name_that_is_no_unicode(self, photos):
        os.rename(photos / "猫/1.png", os.path.join(os.fsencode(photos / "猫"), b"\xff.png"))
        assert len(listed(photos)[1]) == 1
        pairs = tolerant(photos, format="classes")
        assert (len(pairs), pairs.report.errors) == (3, 1)

    def test_several_folders_keep_their_ids_apart(self, photos, tmp_path):
        other = tmp_path / "old" / "photos"
        other.mkdir(parents=True)
        (other / "1.png").write_bytes(png(90))
        table = tmp_path / "more.csv"
        table.write_text(f"image\n{photos / '猫/1.png'}\n")
        found, problems, _ = listed([photos, other, photos, table])
        assert problems == []
        assert len(found) == 6
        assert f"{tmp_path.name}/photos/猫/1.png" in found
        assert "old/photos/1.png" in found

    def test_names_in_capitals_and_junk_beside_data_files(self, photos, tmp_path):
        (photos / "Captions.CSV").write_text("sep=,\nImage,Text\n猫/1.png,一只猫\n", encoding="utf-8")
        assert texts_of(load_pairs(photos)) == ["一只猫"]
        assert listed(photos)[0]["猫/1.png"] == ("一只猫",)
        (tmp_path / "shards").mkdir()
        write_tar(tmp_path / "shards" / "0.TAR", [("1.png", png(1)), ("1.txt", "图")])
        (tmp_path / "shards" / "._0.TAR").write_bytes(b"junk")
        assert texts_of(load_pairs(tmp_path / "shards")) == ["图"]
        assert list(listed(tmp_path / "shards")[0]) == ["0.TAR/1.png"]

    def test_a_format_that_does_not_fit(self, photos, tmp_path):
        """A folder stands for its files of the format that was named; a file is no folder."""
        write_tar(photos / "0.tar", [("1.png", png(1)), ("1.txt", "图")])
        assert texts_of(load_pairs(photos, format="webdataset")) == ["图"]
        assert list(listed(photos, format="webdataset")[0]) == ["0.tar/1.png"]
        (tmp_path / "x.csv").write_text("image,text\n")
        for read in (load_pairs, lambda *args, **options: list(list_images(*args, **options))):
            with pytest.raises(ValueError, match="without files of the format csv"):
                read(photos, format="csv")
            for kind in ("folder", "classes", "dataset"):
                with pytest.raises(ValueError, match="is a file, and the format"):
                    read(tmp_path / "x.csv", format=kind)

    def test_shards_of_one_name(self, tmp_path):
        for folder in "ab":
            (tmp_path / folder).mkdir()
            write_tar(tmp_path / folder / "0.tar", [("1.png", png(ord(folder)))])
        assert list(listed([tmp_path / "a/0.tar", tmp_path / "b/0.tar"])[0]) == ["a/0.tar/1.png", "b/0.tar/1.png"]
        assert list(listed(tmp_path / "a")[0]) == ["0.tar/1.png"]  # a folder of shards alone stands for them


@pytest.mark.parametrize("name", ["captions.txt", "Captions.TXT"])
def test_the_captions_of_a_folder_named_alone_lead_to_the_folder(tmp_path, name):
    (tmp_path / name).write_text("1.jpg\t一只猫\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"name the folder, {tmp_path}$"):
        load_pairs(tmp_path / name)
