"""The general reader: every format, and every bad record told with file and line."""

import csv
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from modeling_r2d2.processing.datasets import PairDataset, load_pairs
from modeling_r2d2.processing.datasets.records import stable_id, stable_ids
from modeling_r2d2.processing.datasets.report import DataRefusedError, ErrorReport, Note, Problem
from modeling_r2d2.processing.files.images import ImageReadError
from tests.helpers import tiny_image

from .conftest import png

tolerant = partial(load_pairs, max_error_rate=1.0)


def write_jsonl(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def check_good(pairs: PairDataset, count: int = 3) -> None:
    """Pairs of the pictures 0, 1, 2, ... with the texts 图0, 图1, ..."""
    assert len(pairs) == count
    for number in range(count):
        pair = pairs[number]
        assert set(pair) == {"image", "text", "image_id"}
        assert pair["image"].mode == "RGB"
        assert pair["text"] == f"图{number}"
        expected = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        assert np.array_equal(np.asarray(pair["image"]), expected)


GOOD = [{"image": f"{n}.png", "text": f"图{n}"} for n in range(3)]


class TestFormats:
    def test_jsonl(self, image_folder):
        check_good(load_pairs(write_jsonl(image_folder / "data.jsonl", GOOD)))

    @pytest.mark.parametrize(("image", "text"), [("image_path", "caption"), ("file_name", "texts")])
    def test_jsonl_aliases(self, image_folder, image, text):
        rows = [{image: row["image"], text: row["text"], "more": 1} for row in GOOD]
        check_good(load_pairs(write_jsonl(image_folder / "data.json", rows)))

    def test_jsonl_own_names_ids_and_several_texts(self, image_folder):
        rows = [{"file": "0.png", "title": [" 一只猫 ", "猫"], "key": 12}, {"file": "1.png", "title": "狗"}]
        path = write_jsonl(image_folder / "data.jsonl", rows)
        pairs = load_pairs(path, columns={"image": "file", "text": "title", "image_id": "key"})
        assert pairs[0]["text"] == ["一只猫", "猫"]
        assert pairs[0]["image_id"] == "12"
        assert pairs[1] == {**pairs[1], "text": "狗", "image_id": "1.png"}
        assert pairs.image_ids().tolist() == [stable_id("12"), stable_id("1.png")]
        assert pairs.all_texts() == ["一只猫", "猫", "狗"]
        assert pairs.first_texts() == ["一只猫", "狗"]
        assert pairs.location(1) == f"{path}:2"

    def test_jsonl_byte_order_mark_and_blank_lines(self, image_folder):
        path = image_folder / "data.jsonl"
        lines = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in GOOD)
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
        pairs = load_pairs(path)
        check_good(pairs)
        assert pairs.location(2) == f"{path}:5"
        assert pairs.report.errors == 0

    @pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
    def test_delimited(self, image_folder, suffix, delimiter):
        with open(image_folder / f"data.{suffix}", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["id", "image", "text"])
            writer.writerows([f"n{n}", f"{n}.png", f"图{n}"] for n in range(3))
        pairs = load_pairs(image_folder / f"data.{suffix}")
        check_good(pairs)
        assert pairs[2]["image_id"] == "n2"
        (image_folder / "plain").write_text("\n".join(f"图{n}{delimiter}{n}.png" for n in range(3)), encoding="utf-8")
        check_good(load_pairs(image_folder / "plain", format=suffix, columns=["text", "image"]))

    def test_csv_quotes_and_line_breaks(self, image_folder):
        (image_folder / "data.csv").write_text('image,text\n0.png,"红,""大""\n的"\n1.png,图\n', encoding="utf-8")
        pairs = load_pairs(image_folder / "data.csv")
        assert pairs[0]["text"] == '红,"大"\n的'
        assert pairs.location(1).endswith("data.csv:4")

    def test_tsv_keeps_quotation_marks(self, image_folder):
        (image_folder / "data.tsv").write_text('image\ttext\n0.png\t"红\n1.png\t大"\n', encoding="utf-8")
        assert load_pairs(image_folder / "data.tsv").first_texts() == ['"红', '大"']

    def test_several_files_glob_and_image_root(self, image_folder, tmp_path):
        for number, row in enumerate(GOOD):
            write_jsonl(tmp_path / f"part-{number}.jsonl", [row])
        for source in (
            tmp_path / "part-*.jsonl",
            [tmp_path / f"part-{n}.jsonl" for n in range(3)],
            f"{tmp_path}/part-{{0..2}}.jsonl",
        ):
            check_good(load_pairs(source, image_root=image_folder))

    @pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv", "captions.tsv", "captions.txt", "sidecars"])
    def test_folder(self, image_folder, name):
        if name == "sidecars":
            for number in range(3):
                (image_folder / f"{number}.txt").write_text(f"图{number}\n", encoding="utf-8")
            for extra in ("3.png", "4.png", "half.png", "text.png"):
                (image_folder / extra).unlink()
        elif name.endswith("jsonl"):
            write_jsonl(image_folder / name, [{"file_name": row["image"], "text": row["text"]} for row in GOOD])
        else:
            delimiter = "," if name.endswith("csv") else "\t"
            header = "" if name.endswith("txt") else f"file_name{delimiter}caption\n"
            lines = "\n".join(f"{row['image']}{delimiter}{row['text']}" for row in GOOD)
            (image_folder / name).write_text(header + lines, encoding="utf-8")
        pairs = load_pairs(image_folder)
        check_good(pairs)
        if name != "sidecars":
            assert "4 pictures" in pairs.report.summary()

    def test_numbered_captions_of_one_image_share_its_id(self, image_folder):
        (image_folder / "captions.txt").write_text("0.png#0\t图0\n0.png#1\t图\n1.png\t图1\n", encoding="utf-8")
        pairs = load_pairs(image_folder)
        assert pairs[0]["image_id"] == pairs[1]["image_id"] == "0.png"
        assert len(set(pairs.image_ids())) == 2

    def test_folder_splits(self, image_folder, tmp_path):
        write_jsonl(image_folder / "captions.jsonl", GOOD)
        check_good(load_pairs(tmp_path, split="pictures"))
        write_jsonl(tmp_path / "val.jsonl", GOOD)
        check_good(load_pairs(tmp_path, split="val", image_root=image_folder))
        with pytest.raises(ValueError, match="no split 'test'"):
            load_pairs(tmp_path, split="test")
        with pytest.raises(ValueError, match=r"val.jsonl \(jsonl\) has no splits"):
            load_pairs(tmp_path / "val.jsonl", split="val")

    def test_images_of_one_name_in_two_folders_are_two(self, tmp_path):
        for seed, shop in enumerate(("一店", "二店")):
            (tmp_path / shop).mkdir()
            Image.new("RGB", (16, 16), (99 * seed, 0, 0)).save(tmp_path / shop / "1.png")
            rows = [{"image": "1.png", "text": "门"}, {"image": "1.png", "text": "窗"}]
            write_jsonl(tmp_path / shop / "pairs.jsonl", rows)
        pairs = load_pairs(str(tmp_path / "*" / "pairs.jsonl"))
        assert pairs[0]["image_id"] == pairs[1]["image_id"] == str(tmp_path / "一店" / "1.png")
        assert len(pairs) == 4
        assert len(set(pairs.image_ids())) == 2
        assert load_pairs(tmp_path / "一店" / "pairs.jsonl")[0]["image_id"] == "1.png"

    @pytest.mark.parametrize("decoded", [True, False])
    def test_parquet(self, image_folder, tmp_path, decoded):
        import datasets

        for part, numbers in enumerate(([0], [1, 2])):
            images = [{"bytes": png(n), "path": "same.png"} if decoded else f"{n}.png" for n in numbers]
            rows = datasets.Dataset.from_dict({"image": images, "text": [f"图{n}" for n in numbers]})
            rows = rows.cast_column("image", datasets.Image()) if decoded else rows
            rows.to_parquet(tmp_path / f"part-{part}.parquet")
        pairs = load_pairs(tmp_path / "part-*.parquet", image_root=None if decoded else image_folder)
        check_good(pairs)
        assert pairs.location(2) == f"{tmp_path / 'part-1.parquet'}:2"
        assert len(set(pairs.image_ids())) == 3

    def test_semicolons(self, image_folder):
        (image_folder / "data.csv").write_text("image;text\n0.png;图0\n", encoding="utf-8")
        with pytest.raises(ValueError, match="fields are parted by ';', not by ','"):
            load_pairs(image_folder / "data.csv")
        (image_folder / "data.tsv").write_text("image,text\n0.png,图0\n", encoding="utf-8")
        with pytest.raises(ValueError, match="name it .csv"):
            load_pairs(image_folder / "data.tsv")

    def test_background_that_is_no_color(self, image_folder):
        write_jsonl(image_folder / "data.jsonl", GOOD)
        with pytest.raises(ValueError, match="background is 'whit', no colour"):
            load_pairs(image_folder / "data.jsonl", background="whit")

    def test_parquet_of_several_folders(self, tmp_path):
        import datasets

        for n, shop in enumerate(("一店", "二店")):
            (tmp_path / shop).mkdir()
            (tmp_path / shop / "1.png").write_bytes(png(n))
            rows = datasets.Dataset.from_dict({"image": ["1.png"], "text": [f"图{n}"]})
            rows.to_parquet(tmp_path / shop / "pairs.parquet")
        pairs = load_pairs([tmp_path / "一店" / "pairs.parquet", tmp_path / "二店" / "pairs.parquet"])
        assert pairs.keys() == [str(tmp_path / "一店" / "1.png"), str(tmp_path / "二店" / "1.png")]
        assert pairs[1]["image"].tobytes() != pairs[0]["image"].tobytes()

    def test_datasets_object_and_saved_folder(self, tmp_path):
        import datasets

        features = datasets.Features(
            {"image": datasets.Image(), "text": datasets.List(datasets.Value("string")), "id": datasets.Value("int64")}
        )
        rows = {"image": [Image.open(_file(png(n))) for n in range(3)], "text": [[f"图{n}"] for n in range(3)]}
        dataset = datasets.Dataset.from_dict({**rows, "id": [7, 8, 9]}, features=features)
        pairs = load_pairs(dataset.with_format("numpy"))
        check_good(pairs)
        assert pairs[0]["image_id"] == "7"
        splits = datasets.DatasetDict({"train": dataset, "val": dataset.select([0])})
        check_good(load_pairs(splits))
        check_good(load_pairs(splits, split="val"), 1)
        splits.save_to_disk(tmp_path / "saved")
        check_good(load_pairs(tmp_path / "saved", split="train"))
        with pytest.raises(ValueError, match="no split 'test'"):
            load_pairs(tmp_path / "saved", split="test")

    def test_one_id_for_the_same_bytes(self):
        import datasets

        images = [{"bytes": png(n), "path": None} for n in (0, 1, 0)]
        dataset = datasets.Dataset.from_dict({"image": images, "text": ["a", "b", "c"]})
        ids = load_pairs(dataset.cast_column("image", datasets.Image())).image_ids()
        assert ids[0] == ids[2] != ids[1]


def _file(data: bytes):
    import io

    return io.BytesIO(data)


BAD = [
    (2, "{nonsense", "not JSON"),
    (3, '["a"]', "a JSON list, not an object"),
    (4, {"image": "0.png", "text": "  "}, "empty caption"),
    (5, {"image": "0.png", "text": []}, "empty caption"),
    (6, {"image": "0.png", "text": None}, "empty caption"),
    (7, {"image": "0.png", "text": 7}, "the text is int"),
    (8, {"image": "0.png", "text": ["一", 7]}, "a text is int"),
    (9, {"image": "", "text": "一"}, "no image"),
    (10, {"image": 3, "text": "一"}, "the image is int"),
    (11, {"text": "一"}, "no column for the image"),
    (12, {"image": "0.png"}, "no column for the text"),
    (13, {"image": "missing.png", "text": "一"}, "no such picture"),
    (14, {"image": "text.png", "text": "一"}, "not a picture"),
    (15, '{"image": "0.png", "text": "\\ud800"}', "not valid Unicode"),
    (16, {"image": "0.png", "text": "一", "image_id": [1]}, "the image_id is list"),
    (17, {"image": "0.png", "text": ["一", " "]}, "1 empty captions beside good ones"),
]


class TestBadRecords:
    def test_each_kind_is_reported_with_file_and_line(self, image_folder, caplog):
        path = write_jsonl(image_folder / "data.jsonl", [GOOD[0], *(row for _, row, _ in BAD)])
        pairs = tolerant(path)
        assert pairs.first_texts() == ["图0", "一"]
        assert pairs.report.seen == len(BAD) + 1
        assert pairs.report.errors == len(BAD)
        for problem, (line, _, reason) in zip(pairs.report.problems, BAD, strict=True):
            assert (problem.source, problem.line) == (str(path), line)
            assert reason in problem.reason
        assert f"16 bad of 17 records:\n  {path}:2: not JSON" in caplog.text
        assert "... and 11 more" in caplog.text

    def test_not_utf8(self, image_folder):
        lines = b'{"image": "0.png", "text": "a"}\n' + '{"text": "狗"}\n'.encode("gbk")
        (image_folder / "data.jsonl").write_bytes(lines)
        problem = tolerant(image_folder / "data.jsonl").report.problems[0]
        assert (problem.line, problem.reason[:9]) == (2, "not UTF-8")
        (image_folder / "data.csv").write_bytes(b"image,text\n0.png,a\n1.png," + "狗".encode("gbk") + b"\n2.png,c\n")
        pairs = tolerant(image_folder / "data.csv")
        assert [(p.line, p.reason) for p in pairs.report.problems] == [(3, "not UTF-8")]
        assert pairs.first_texts() == ["a", "c"]

    def test_csv_rows_of_other_length_and_unclosed_quotes(self, image_folder):
        rows = ["image,text", "0.png,a", "1.png,b,c", "1.png", "", '2.png,"d"e', "2.png,f", '3.png,"g', "4.png,h"]
        (image_folder / "data.csv").write_text("\n".join(rows))
        pairs = tolerant(image_folder / "data.csv")
        assert pairs.first_texts() == ["a", "f"]
        found = [(p.line, p.lines) for p in pairs.report.problems]
        assert found == [(3, 1), (4, 1), (6, 1), (8, 2)]
        assert "lines 8 to 9: an unclosed quote?" in pairs.report.problems[-1].reason
        assert pairs.report.errors == 5

    def test_captions_txt_and_sidecars(self, image_folder):
        (image_folder / "captions.txt").write_bytes(b"0.png\ta\nnotab\n1.png\t\n\n2.png\t\xff\n")
        problems = tolerant(image_folder).report.problems
        assert [(p.line, p.reason.split(":")[0]) for p in problems] == [
            (2, "no tab between the picture's name and its caption"),
            (3, "empty caption"),
            (5, "not UTF-8"),
        ]
        (image_folder / "captions.txt").unlink()
        (image_folder / "0.txt").write_text("a")
        (image_folder / "1.txt").write_text("\n")
        problems = tolerant(image_folder).report.problems
        assert "no caption: there is no 2.txt beside it" in problems[1].reason
        assert len(problems) == 6

    def test_tables(self, image_folder):
        import datasets

        rows = {"image": ["0.png", None, "missing.png", "half.png"], "text": ["a", "b", "c", None]}
        pairs = tolerant(datasets.Dataset.from_dict(rows), image_root=image_folder)
        assert [str(p) for p in pairs.report.problems] == [
            "data set:2: no image (image is empty)",
            f"data set:3: {image_folder / 'missing.png'}: no such picture",
            "data set:4: empty caption",
        ]

    def test_default_refuses_above_one_percent(self, image_folder):
        rows = [GOOD[0]] * 199
        path = write_jsonl(image_folder / "data.jsonl", [*rows, "?"])
        assert load_pairs(path).report.errors == 1
        path = write_jsonl(image_folder / "data.jsonl", [*rows, "?", "?", "?"])
        with pytest.raises(DataRefusedError, match=r"3 bad of 202 records:\n.*data\.jsonl:200: not JSON") as error:
            load_pairs(path)
        assert "max_error_rate" in str(error.value)

    def test_refuse_any(self, image_folder):
        path = write_jsonl(image_folder / "data.jsonl", [GOOD[0]] * 500 + ["?"])
        with pytest.raises(DataRefusedError, match=r"1 bad of 501"):
            load_pairs(path, on_error="refuse")

    def test_how_much_is_checked(self, image_folder):
        path = write_jsonl(
            image_folder / "data.jsonl", [{"image": n, "text": "a"} for n in ("0.png", "text.png", "no.png")]
        )
        assert len(tolerant(path, check_images="header")) == 1
        assert len(tolerant(path, check_images="exists")) == 2
        assert len(tolerant(path, check_images="none")) == 3

    def test_wrong_use(self, image_folder, tmp_path):
        for name, value in (("format", "xml"), ("on_error", "ignore"), ("max_error_rate", 2), ("check_images", "all")):
            with pytest.raises(ValueError, match=name):
                load_pairs(write_jsonl(image_folder / "data.jsonl", GOOD), **{name: value})
        with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl does not exist"):
            load_pairs(tmp_path / "nowhere.jsonl")
        with pytest.raises(ValueError, match="unknown format"):
            load_pairs(image_folder / "0.png")
        (image_folder / "array.json").write_text(json.dumps(GOOD))
        with pytest.raises(ValueError, match="one object per line"):
            load_pairs(image_folder / "array.json")
        (image_folder / "indented.json").write_text(json.dumps(GOOD, indent=1))
        with pytest.raises(ValueError, match="one object per line"):
            load_pairs(image_folder / "indented.json")
        (image_folder / "data.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match=r"data\.csv: header line: no column for the image.*\['a', 'b'\]"):
            load_pairs(image_folder / "data.csv")
        with pytest.raises(ValueError, match="no column 'x'"):
            load_pairs(image_folder / "data.csv", columns={"image": "x"})
        (image_folder / "empty.jsonl").write_text("")
        with pytest.raises(ValueError, match="no pairs in it"):
            load_pairs(image_folder / "empty.jsonl")
        (image_folder / "bad.parquet").write_text("no")
        with pytest.raises(ValueError, match=r"bad\.parquet is not a readable Parquet file"):
            load_pairs(image_folder / "bad.parquet")
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(ValueError, match="holds no captions file"):
            load_pairs(empty)


class TestAccess:
    @pytest.fixture
    def pairs(self, image_folder) -> PairDataset:
        """Two of five pictures are cut off, which the header does not show."""
        (image_folder / "half2.png").write_bytes(png(8)[:150])
        names = ["0.png", "half.png", "1.png", "half2.png", "2.png"]
        return load_pairs(
            write_jsonl(image_folder / "data.jsonl", [{"image": n, "text": n} for n in names]), max_error_rate=0.5
        )

    def test_broken_image_names_data_line_and_file(self, pairs, image_folder):
        assert len(pairs) == 5
        with pytest.raises(ImageReadError, match=rf"data\.jsonl:2: {image_folder}/half\.png: cannot be decoded"):
            pairs[1]
        with pytest.raises(IndexError):
            pairs[5]
        assert pairs[-1]["text"] == "2.png"

    def test_drop_unreadable(self, pairs):
        whole = pairs.drop_unreadable()
        assert whole.first_texts() == ["0.png", "1.png", "2.png"]
        assert whole.image_ids().tolist() == [stable_id(name) for name in whole.first_texts()]
        assert whole.report.errors == 2
        assert "data.jsonl:4" in whole.report.summary()

    def test_select_and_pickle(self, pairs):
        part = pickle.loads(pickle.dumps(pairs.select([4, 0])))
        assert part.first_texts() == ["2.png", "0.png"]
        assert part[0]["image"].size == (12, 10)
        assert part.location(0).endswith("data.jsonl:5")

    def test_errors_of_all_workers_are_counted_once(self, pairs):
        class Reading:
            def __len__(self):
                return 20

            def __getitem__(self, index):
                try:
                    pairs[index % 5]
                except ImageReadError as error:
                    pairs.record_unreadable(index % 5, error)
                return index

        for _ in range(2):
            assert len(list(DataLoader(Reading(), batch_size=2, num_workers=2))) == 10
        assert pairs.report.errors == 2
        assert sorted(p.line for p in pairs.report.access_problems) == [2, 4]

    def test_too_many_stop_the_loader(self, pairs):
        pairs.report.max_error_rate = 0.1
        with pytest.raises(DataRefusedError, match=r"half2?\.png"):
            list(DataLoader(_Recording(pairs), batch_size=1, num_workers=1))


class _Recording:
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        try:
            self.pairs[index]
        except ImageReadError as error:
            self.pairs.record_unreadable(index, error)
        return index


class TestReport:
    def test_spool_file_is_removed_by_its_owner(self):
        report = ErrorReport(max_error_rate=1.0)
        copy = pickle.loads(pickle.dumps(report))
        copy.record_access("x.jsonl", 3, "broken")
        copy.record_access("x.jsonl", 3, "broken")
        assert report.access_problems == [Problem("x.jsonl", 3, "broken")]
        spool = report._spool
        del copy
        assert spool.exists()
        del report
        assert not spool.exists()

    def test_refuse_at_the_first_access(self):
        report = ErrorReport("refuse")
        with pytest.raises(DataRefusedError, match=r"1 bad of 0 records:\n  x:3: broken"):
            report.record_access("x", 3, "broken")


class TestIds:
    def test_known_values(self):
        """Written down: ids must never change between versions, processes or machines."""
        assert stable_id("1.png") == 8441929374922453660
        assert stable_id(12) == stable_id("12")
        assert stable_id("猫") != stable_id("狗")

    def test_range_and_array(self):
        ids = stable_ids([str(n) for n in range(1000)])
        assert ids.dtype == np.int64
        assert len(set(ids.tolist())) == 1000
        assert ids.min() >= 0
        assert stable_ids(["a", "b", "a"]).tolist() == [stable_id("a"), stable_id("b"), stable_id("a")]


class TestDamagedSources:
    """A source that ends early or swallows rows says so: what is absent from it may not be taken for gone."""

    def test_bad_quote(self, image_folder):
        path = image_folder / "data.csv"
        path.write_text('image,text\n0.png,图0\n1.png,"图1\n2.png,图2\n', encoding="utf-8")
        assert tolerant(path).report.incomplete
        path.write_text("image,text\n0.png,图0\n1.png,\n", encoding="utf-8")
        assert not tolerant(path).report.incomplete

    def test_notes_of_one_kind_are_added_up(self):
        report = ErrorReport()
        for counts in ({".svg": 1}, {".svg": 1, ".pdf": 1}):
            report.add(Note("a", None, "ignored", counts=tuple(counts.items())))
        report.note("once")
        report.note("once")
        assert report.notes == ["ignored: 2 .svg, 1 .pdf", "once"]
        assert report.errors == 0


def test_what_was_reported_is_not_reported_again(tmp_path, caplog):
    """At loading, and after training what turned out bad since."""
    tiny_image().save(tmp_path / "0.png")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    rows = [{"image": name, "text": "猫"} for name in ("0.png", "half.png", "missing.png")]
    (tmp_path / "data.jsonl").write_text("\n".join([*map(json.dumps, rows), "?"]))
    pairs = load_pairs(tmp_path / "data.jsonl", max_error_rate=1.0)
    assert "2 bad of 4 records" in caplog.text
    assert pairs.report.tell() == ""
    assert len(pairs.drop_unreadable()) == 1
    message = pairs.report.tell().splitlines()
    assert message[0] == "1 more bad of 4 records:"
    assert ["half.png" in line for line in message[1:]] == [True]
    assert pairs.report.tell() == ""
    assert pairs.report.summary().startswith("3 bad of 4 records")
    caplog.clear()
    load_pairs(tmp_path / "data.jsonl", max_error_rate=1.0, quiet=True)
    assert not caplog.records
