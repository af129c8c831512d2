"""The published sets in their true formats: what is read, and every bad line by file and line."""

import base64
import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.report import DataRefusedError
from modeling_r2d2.processing.datasets.streaming import StreamingPairs
from modeling_r2d2.processing.files.images import ImageReadError

from .conftest import png

tolerant = partial(load_pairs, max_error_rate=1.0)


def pixels(color: int) -> np.ndarray:
    return np.random.default_rng(color).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def problems(pairs) -> dict[int, str]:
    return {problem.line: problem.reason for problem in pairs.report.problems}


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """A folder `images` of `0.jpg` … `4.jpg` (PNG inside: the suffix means nothing to the reader)."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(png(number))
    return folder


class TestCCMB:
    ROWS = (
        {"text": "一只小狗", "image_path": "/data/zero/images/0.jpg", "label": 1},
        {"text": "高楼", "image_path": "train\\images\\0.jpg", "label": "0"},
        {"text": "蓝天", "image_path": "1.jpg", "label": True},
    )

    @pytest.mark.parametrize(("name", "file"), [("icm", "long_itm"), ("iqm", "short_itm")])
    def test_matching(self, tmp_path, image_folder, name, file):
        path = write_lines(tmp_path / "val" / f"{file}_val.json", list(self.ROWS))
        for source, split in ((path, None), (tmp_path, "val"), (tmp_path, None)):
            pairs = load_pairs(source, format=name, split=split)
            assert pairs.labelled
            assert pairs.labels().tolist() == [1, 0, 1]
            assert pairs.first_texts() == ["一只小狗", "高楼", "蓝天"]
            assert pairs.keys() == ["0.jpg", "0.jpg", "1.jpg"]
            sample = pairs[1]
            assert set(sample) == {"image", "text", "image_id", "label"}
            assert sample["label"] == 0
            assert np.array_equal(np.asarray(sample["image"]), pixels(0))
        assert pairs.select([2, 1]).labels().tolist() == [1, 0]

    def test_bad_lines(self, tmp_path, image_folder):
        rows = [
            *self.ROWS,
            {"text": "没有标签", "image_path": "1.jpg"},
            {"text": "错", "image_path": "1.jpg", "label": 2},
            {"text": "", "image_path": "1.jpg", "label": 1},
            {"text": "没有图", "label": 1},
            {"text": "少", "image_path": "missing.jpg", "label": 1},
            '{"text": "断',
            '["数组"]',
            {"text": "夹", "image_path": "images/", "label": 1},
        ]
        path = write_lines(tmp_path / "val" / "long_itm_val.json", rows)
        found = problems(tolerant(path, format="icm"))
        assert "no label; a labelled pair has 1 (match) or 0" in found[4]
        assert "the label is 2" in found[5]
        assert found[6] == "empty caption"
        assert "no image_path; there are ['text', 'label']" in found[7]
        assert f"{image_folder / 'missing.jpg'}: no such picture" in found[8]
        assert "not JSON" in found[9]
        assert "a JSON list, not an object" in found[10]
        assert "names a folder" in found[11]
        assert len(found) == 8
        with pytest.raises(DataRefusedError, match=r"long_itm_val\.json:4: no label"):
            load_pairs(path, format="icm")

    @pytest.mark.parametrize(("name", "file"), [("icr", "long_itr"), ("iqr", "short_itr")])
    def test_retrieval(self, tmp_path, image_folder, name, file):
        rows = [{"text": "一只小狗", "image_path": "a/0.jpg"}, {"text": "车", "image_path": "b/3.jpg"}, "?"]
        write_lines(tmp_path / name.upper() / "val" / f"{file}_val.json", rows)
        pairs = tolerant(tmp_path, format=name, split="val", image_root=image_folder)
        assert not pairs.labelled
        assert [pairs[i]["text"] for i in range(2)] == ["一只小狗", "车"]
        assert set(pairs[0]) == {"image", "text", "image_id"}
        assert list(problems(pairs)) == [3]
        with pytest.raises(ValueError, match="no labels"):
            pairs.labels()

    def test_label_of_ones_own_files(self, tmp_path, image_folder):
        path = write_lines(tmp_path / "own.jsonl", [{"image": "images/0.jpg", "text": "狗", "match": 0}])
        assert load_pairs(path, columns={"label": "match"})[0]["label"] == 0
        assert not load_pairs(path).labelled
        with pytest.raises(ValueError, match="no column 'label'"):
            tolerant(path, columns={"label": "label"})

    def test_several_splits_must_be_named(self, tmp_path, image_folder):
        for split in ("train", "val"):
            write_lines(tmp_path / split / f"long_itr_{split}.json", [{"text": "狗", "image_path": "0.jpg"}])
        with pytest.raises(ValueError, match=r"splits train, val of ICR: name one with split="):
            load_pairs(tmp_path, format="icr")
        with pytest.raises(FileNotFoundError, match=r"no split of ICR 'test'.*test/long_itr_test\.json.*train, val"):
            load_pairs(tmp_path, format="icr", split="test")
        with pytest.raises(FileNotFoundError, match="IQR"):
            load_pairs(tmp_path, format="iqr")


class TestFlickr30kCNA:
    def test_both_ways_of_naming(self, tmp_path, image_folder):
        lines = ["0.jpg#0\t两个男人", "0.jpg#1\t两个人", "1#0\t一条狗", "2\t没有编号", "2.jpg\t也没有"]
        write_lines(tmp_path / "test" / "flickr30k_cna_test.txt", lines)
        pairs = load_pairs(tmp_path, format="flickr30k-cna", split="test")
        assert pairs.first_texts() == ["两个男人", "两个人", "一条狗", "没有编号", "也没有"]
        assert pairs.keys() == ["0.jpg", "0.jpg", "1.jpg", "2.jpg", "2.jpg"]
        assert np.array_equal(np.asarray(pairs[2]["image"]), pixels(1))

    def test_image_folder_beside_or_named(self, tmp_path, image_folder):
        path = write_lines(tmp_path / "test" / "flickr30k_cna_test.txt", ["0#0\t男人"])
        shutil.move(image_folder, tmp_path / "elsewhere")
        with pytest.raises(DataRefusedError, match=r"flickr30k_cna_test\.txt:1: .*0\.jpg: no such picture"):
            load_pairs(path, format="flickr30k-cna")
        assert len(load_pairs(path, format="flickr30k-cna", image_root=tmp_path / "elsewhere")) == 1
        shutil.move(tmp_path / "elsewhere", tmp_path / "flickr30k-images")
        assert len(load_pairs(path, format="flickr30k-cna")) == 1

    def test_bad_lines(self, tmp_path, image_folder):
        path = tmp_path / "flickr30k_cna_val.txt"
        path.write_bytes("0.jpg#0 没有制表符\n0.jpg#1\t\n9.jpg#0\t少图\n0.jpg#2\t好\n".encode() + b"0.jpg#3\t\xff\n")
        pairs = tolerant(path, format="flickr30k-cna")
        assert pairs.first_texts() == ["好"]
        found = problems(pairs)
        assert list(found) == [1, 2, 3, 5]
        assert "no tab" in found[1]
        assert "not UTF-8" in found[5]

    def test_as_a_stream(self, tmp_path, image_folder):
        path = write_lines(tmp_path / "flickr30k_cna_val.txt", ["0#0\t甲", "1#0\t乙", "?"])
        pairs = tolerant(path, format="flickr30k-cna", streaming=True)
        assert [(s["text"], s["image_id"]) for s in pairs] == [("甲", "0.jpg"), ("乙", "1.jpg")]
        assert list(problems(pairs)) == [3]


class TestChineseCLIP:
    @pytest.fixture
    def folder(self, tmp_path) -> Path:
        """Three pictures, one without a text; one in URL-safe base64; a text of two pictures."""
        lines = []
        for number in range(3):
            data = base64.b64encode(png(number)).decode()
            lines.append(f"{1000 + number}\t{data if number else data.replace('+', '-').replace('/', '_')}")
        write_lines(tmp_path / "valid_imgs.tsv", lines)
        rows = [
            {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1000, 1001]},
            {"text_id": 8429, "text": "棉鞋", "image_ids": [1001]},
        ]
        write_lines(tmp_path / "valid_texts.jsonl", rows)
        return tmp_path

    def test_pairs(self, folder):
        for source in (folder, folder / "valid_texts.jsonl"):
            pairs = load_pairs(source, format="chinese-clip")
            assert pairs.first_texts() == ["高级感托特包斜挎", "高级感托特包斜挎", "棉鞋"]
            assert pairs.keys() == ["1000", "1001", "1001"]
            assert pairs.text_keys() == ["8428", "8428", "8429"]
            for index, color in enumerate((0, 1, 1)):
                assert np.array_equal(np.asarray(pairs[index]["image"]), pixels(color))
            assert pairs.unpaired.keys() == ["1002"]
            assert np.array_equal(np.asarray(pairs.unpaired.image(0)), pixels(2))
            copy = pickle.loads(pickle.dumps(pairs.select([2])))
            assert np.array_equal(np.asarray(copy[0]["image"]), pixels(1))

    def test_bad_lines(self, folder):
        with open(folder / "valid_imgs.tsv", "a") as file:
            file.write("1003 no tab\n1004\t$$$$\n1005\t" + base64.b64encode(b"no picture").decode() + "\n")
            file.write("1000\tAAAA\n1006\t" + base64.b64encode(png(6)[:150]).decode() + "\n")
        with open(folder / "valid_texts.jsonl", "a", encoding="utf-8") as file:
            rows = [
                {"text_id": 1, "text": "没有图", "image_ids": [99]},
                {"text_id": 2, "text": "测试集", "image_ids": []},
                {"text_id": 3, "text": " ", "image_ids": [1000]},
                {"text_id": 4, "text": "错", "image_ids": 1000},
                {"text_id": 5, "text": "半", "image_ids": [1006]},
            ]
            file.writelines(json.dumps(row) + "\n" for row in rows)
        pairs = tolerant(folder, format="chinese-clip")
        found = {(Path(p.source).name, p.line): p.reason for p in pairs.report.problems}
        assert "not two fields" in found["valid_imgs.tsv", 4]
        assert "not base64" in found["valid_imgs.tsv", 5]
        assert "picture 1005: not a picture" in found["valid_imgs.tsv", 6]
        assert "twice" in found["valid_imgs.tsv", 7]
        assert "picture 99 is not" in found["valid_texts.jsonl", 3]
        assert "image_ids is empty" in found["valid_texts.jsonl", 4]
        assert found["valid_texts.jsonl", 5] == "empty caption"
        assert "not a list of ids" in found["valid_texts.jsonl", 6]
        assert len(found) == 8
        with pytest.raises(ImageReadError, match=r"valid_texts\.jsonl:7: cannot be decoded"):
            pairs[3]

    def test_files_that_are_missing(self, folder):
        (folder / "valid_imgs.tsv").unlink()
        with pytest.raises(FileNotFoundError, match=r"valid_imgs\.tsv does not exist"):
            load_pairs(folder, format="chinese-clip")
        write_lines(folder / "x.jsonl", [{}])
        with pytest.raises(ValueError, match="SPLIT_texts"):
            load_pairs(folder / "x.jsonl", format="chinese-clip")


class TestAICICC:
    def test_array_on_one_line_and_indented(self, tmp_path):
        folder = tmp_path / "caption_validation_images_20170910"
        folder.mkdir()
        rows = []
        for number in range(2):
            (folder / f"{number}.jpg").write_bytes(png(number))
            captions = [f"第{number}图第{n}句" for n in range(5)]
            rows.append({"url": "http://x/y", "image_id": f"{number}.jpg", "caption": captions})
        (tmp_path / "caption_train_images_20170902").mkdir()  # of another split
        path = tmp_path / "caption_validation_annotations_20170910.json"
        for indent in (None, 1):
            path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8")
            pairs = load_pairs(tmp_path, format="aic-icc", split="validation")
            assert [pairs.texts(i) for i in range(2)] == [row["caption"] for row in rows]
            assert pairs.location(1) == f"{path}:{1 if indent is None else 13}"
            assert np.array_equal(np.asarray(pairs[1]["image"]), pixels(1))

    def test_bad_elements(self, tmp_path, image_folder):
        path = tmp_path / "caption_validation_annotations_1.json"
        good = '{"image_id": "0.jpg", "caption": ["好"]}'
        path.write_text(
            f'[{good},\n 5,\n{{"image_id": "0.jpg"}},\n{good},\n{{"image_id": }}, {good}]', encoding="utf-8"
        )
        pairs = tolerant(path, format="aic-icc")
        assert len(pairs) == 2
        found = problems(pairs)
        assert "a JSON int" in found[2]
        assert "no caption" in found[3]
        assert "not JSON from element 5 on" in found[5]
        for broken, reason in ((f"[{good}\n{good}]", "ends early, behind element 1"), (f"[{good},\n", "element 2")):
            path.write_text(broken, encoding="utf-8")
            assert reason in problems(tolerant(path, format="aic-icc"))[2]
        path.write_text("[ ]")
        with pytest.raises(ValueError, match="no pairs in it"):
            load_pairs(path, format="aic-icc")


class TestCOCOCN:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        for year, number in (("train2014", 36), ("val2014", 42)):
            (tmp_path / year).mkdir()
            (tmp_path / year / f"COCO_{year}_{number:012d}.jpg").write_bytes(png(number))
        return tmp_path

    def test_captions_and_lists_of_splits(self, root):
        lines = ["COCO_train2014_000000000036#0\t女人撑着伞", "COCO_val2014_000000000042#0\t一双鞋", "坏行"]
        write_lines(root / "imageid.human-written-caption.txt", lines)
        write_lines(root / "coco-cn_train.txt", ["COCO_train2014_000000000036"])
        write_lines(root / "coco-cn_test.txt", ["COCO_val2014_000000000042"])
        pairs = tolerant(root, format="coco-cn", split="test")
        assert pairs.first_texts() == ["一双鞋"]
        assert pairs.keys() == ["COCO_val2014_000000000042.jpg"]
        assert np.array_equal(np.asarray(pairs[0]["image"]), pixels(42))
        assert list(problems(pairs)) == [3]
        assert tolerant(root / "coco-cn_train.txt", format="coco-cn").first_texts() == ["女人撑着伞"]
        assert len(tolerant(root / "imageid.human-written-caption.txt", format="coco-cn")) == 2
        (root / "coco-cn_test.txt").write_text("")
        with pytest.raises(ValueError, match="is empty"):
            load_pairs(root, format="coco-cn", split="test")

    def test_json(self, root):
        name = "COCO_val2014_000000000042"
        rows = [{"image_id": name, "captions": ["一双鞋", "鞋"], "tags": ["鞋"]}, {"image_id": name}]
        path = write_lines(root / "a.json", rows)
        pairs = tolerant(path, format="coco-cn")
        assert pairs.texts(0) == ["一双鞋", "鞋"]
        assert "no caption" in problems(pairs)[2]
        whole = {
            "images": [{"id": 7, "file_name": f"{name}.jpg"}],
            "annotations": [{"image_id": 7, "caption": "鞋"}, {"image_id": 8, "caption": "无"}],
        }
        path = root / "b.json"
        path.write_text(json.dumps(whole), encoding="utf-8")
        pairs = tolerant(path, format="coco-cn")
        assert pairs.first_texts() == ["鞋"]
        assert "image_id 8 is not among" in problems(pairs)[2]


ZERO = {"Url": "http://a", "Title": "小狗的照片", "Content": "", "Keywords": "宠物", "ImageUrl": "http://a/1"}


class TestZero:
    def test_several_texts_a_image(self, tmp_path, image_folder):
        rows = [
            {**ZERO, "ImageKey": "0", "ImageQuery": "小狗"},
            {**ZERO, "ImageKey": "1.jpg", "ImageQuery": "小狗的照片", "Content": "一只小狗在跑"},
            {**ZERO, "ImageKey": "2", "ImageQuery": ["狗", "黄狗"], "Title": None},
        ]
        path = write_lines(tmp_path / "zero.json", rows)
        pairs = load_pairs(path, format="zero")
        assert [pairs.texts(i) for i in range(3)] == [
            ["小狗", "小狗的照片"],
            ["小狗的照片", "一只小狗在跑"],
            ["狗", "黄狗"],
        ]
        assert pairs.keys() == ["0", "1.jpg", "2"]
        assert np.array_equal(np.asarray(pairs[2]["image"]), pixels(2))
        chosen = tolerant(path, format="zero", columns={"text": "Title,Keywords"})
        assert chosen.texts(0) == ["小狗的照片", "宠物"]

    def test_bad_lines(self, tmp_path, image_folder):
        rows = [
            {**ZERO, "ImageKey": "0"},
            {**ZERO, "ImageQuery": "没有键"},
            {**ZERO, "ImageKey": "1", "Title": ""},
            {**ZERO, "ImageKey": "9"},
            {**ZERO, "ImageKey": "1", "Title": 5},
        ]
        pairs = tolerant(write_lines(tmp_path / "zero.json", rows), format="zero")
        found = problems(pairs)
        assert list(found) == [2, 3, 4, 5]
        assert "no ImageKey" in found[2]
        assert found[3] == "empty caption (ImageQuery, Title, Content)"
        assert "9.jpg: no such picture" in found[4]
        assert "a text is int" in found[5]


class TestImg2dataset:
    STATS = {"count": 3, "successes": 2, "status_dict": {"success": 2, "HTTP Error 404: Not Found": 1}}

    def members(self, columns: dict) -> list[tuple[str, bytes | str]]:
        out = []
        for number in range(2):
            key = f"{number:09d}"
            row = {**columns, "key": key, "url": f"http://a/{number}", "status": "success", "width": 12}
            out += [(f"{key}.jpg", png(number)), (f"{key}.txt", f"图{number}"), (f"{key}.json", json.dumps(row))]
        return out

    def test_wukong_shards(self, tmp_path):
        from .test_streaming import write_tar

        for shard in range(2):
            members = self.members({"caption": f"图{shard}"})
            if shard:
                members += [("000000007.jpg", png(7)), ("000000007.json", '{"caption": null}'), ("8.jpg", png(8))]
            write_tar(tmp_path / f"{shard:05d}.tar", members)
            (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps(self.STATS))
        pairs = tolerant(tmp_path, format="wukong")
        assert isinstance(pairs, StreamingPairs)
        samples = list(pairs)
        assert [(s["text"], s["image_id"]) for s in samples] == [
            (f"图{shard}", f"http://a/{n}") for shard in range(2) for n in range(2)
        ]
        assert np.array_equal(np.asarray(samples[3]["image"]), pixels(1))
        reasons = {Path(p.source).name: p.reason for p in pairs.report.problems}
        assert reasons["000000007"] == "empty caption"
        assert "no .json among its members" in reasons["8"]
        assert "2 of 6 addresses were not fetched (HTTP Error 404: Not Found: 2)" in pairs.report.summary()

    def test_zero_shards_keep_every_text(self, tmp_path):
        from .test_streaming import write_tar

        columns = {"Title": "题", "Content": "文", "ImageQuery": "问", "ImageKey": "k"}
        write_tar(tmp_path / "00000.tar", self.members(columns))
        samples = list(load_pairs(tmp_path / "00000.tar", format="zero"))
        assert [(s["text"], s["image_id"]) for s in samples] == [(["问", "题", "文"], "k")] * 2

    def test_files(self, tmp_path):
        folder = tmp_path / "00000"
        folder.mkdir()
        for name, data in self.members({"caption": "图"}):
            (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        (folder / "x.jpg").write_bytes(png(4))
        (folder / "y.jpg").write_bytes(png(4))
        (folder / "y.json").write_text("{")
        (tmp_path / "00000_stats.json").write_text(json.dumps(self.STATS))
        pairs = tolerant(tmp_path, format="wukong")
        assert pairs.keys() == ["http://a/0", "http://a/1"]
        assert np.array_equal(np.asarray(pairs[1]["image"]), pixels(1))
        reasons = {Path(p.source).name: p.reason for p in pairs.report.problems}
        assert "no x.json" in reasons["x.jpg"]
        assert "not JSON" in reasons["y.json"]
        (tmp_path / "00000_stats.json").write_text("[]")
        with pytest.raises(ValueError, match="00000_stats.json is not a statistics file"):
            load_pairs(tmp_path, format="wukong")

    def test_addresses_alone(self, tmp_path):
        path = tmp_path / "wukong_100m_0.csv"
        path.write_text("url,caption\nhttp://a,图\n", encoding="utf-8")
        with pytest.raises(ValueError, match="addresses, not pictures.*img2dataset --url_list wukong_100m_0.csv"):
            load_pairs(path, format="wukong")
        with pytest.raises(ValueError, match="is it img2dataset's output"):
            load_pairs(tmp_path, format="wukong")


class TestBuilders:
    def test_flickr(self, tmp_path, image_folder):
        from modeling_r2d2.processing.datasets.builders import Flickr30kCNA

        path = write_lines(tmp_path / "test" / "flickr30k_cna_test.txt", ["0#0\t甲", "1#0\t乙"])

        def build():
            builder = Flickr30kCNA(path=tmp_path, split="test", cache_dir=str(tmp_path / "cache"))
            builder.download_and_prepare()
            return builder.as_dataset(split="test")

        data = build()
        assert data["text"][:] == [["甲"], ["乙"]]
        assert data[1]["image_id"] == "1.jpg"
        assert data[1]["location"] == f"{path}:2"
        assert np.array_equal(np.asarray(data[1]["image"]), pixels(1))
        write_lines(path, ["0#0\t甲", "1#0\t乙", "2#0\t丙"])
        assert len(build()) == 3, "changed files must be read again"
        with pytest.raises(ValueError, match="needs path="):
            Flickr30kCNA()

    @pytest.mark.parametrize("options", [{}, {"encoding": "gbk"}])
    def test_files_in_gbk(self, tmp_path, image_folder, options):
        from modeling_r2d2.processing.datasets.builders import Flickr30kCNA

        path = write_lines(tmp_path / "test" / "flickr30k_cna_test.txt", ["0#0\t黑色的猫", "1#0\t小狗"])
        path.write_bytes(path.read_text(encoding="utf-8").encode("gbk"))
        (path.parent / "._flickr30k_cna_test.txt").write_bytes(b"junk")
        builder = Flickr30kCNA(path=tmp_path, split="test", cache_dir=str(tmp_path / "cache"), **options)
        builder.download_and_prepare()
        assert builder.as_dataset(split="test")["text"][:] == [["黑色的猫"], ["小狗"]]

    def test_labels_and_embedded_images(self, tmp_path, image_folder):
        from modeling_r2d2.processing.datasets.builders import ICM, ChineseCLIPFormat

        path = write_lines(tmp_path / "long_itm_val.json", list(TestCCMB.ROWS))
        builder = ICM(path=path, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        assert builder.as_dataset(split="data")["label"][:] == [1, 0, 1]
        write_lines(tmp_path / "valid_imgs.tsv", [f"7\t{base64.b64encode(png(3)).decode()}"])
        write_lines(tmp_path / "valid_texts.jsonl", [{"text_id": 1, "text": "包", "image_ids": [7]}])
        builder = ChineseCLIPFormat(path=tmp_path, split="valid", cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        row = builder.as_dataset(split="valid")[0]
        assert np.array_equal(np.asarray(row["image"]), pixels(3))
        assert (row["text"], row["text_id"], row["label"]) == (["包"], "1", None)

    def test_shards(self, tmp_path):
        from modeling_r2d2.processing.datasets.builders import Wukong

        from .test_streaming import write_tar

        write_tar(tmp_path / "00000.tar", TestImg2dataset().members({"caption": "图"}))
        builder = Wukong(path=tmp_path, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare()
        data = builder.as_dataset(split="data")
        assert (data["text"][:], data["image_id"][:]) == ([["图"], ["图"]], ["http://a/0", "http://a/1"])
        assert np.array_equal(np.asarray(data[1]["image"]), pixels(1))

    def test_every_format_has_one(self):
        from modeling_r2d2.processing.datasets import builders
        from modeling_r2d2.processing.datasets.formats import BENCHMARKS

        assert {kind.FORMAT for kind in builders.PairBuilder.__subclasses__()} == set(BENCHMARKS)


class TestResume:
    @pytest.fixture
    def shards(self, tmp_path) -> str:
        """Three shards of four samples, one of them broken."""
        from .test_streaming import write_tar

        for shard in range(3):
            members = []
            for n in range(4 * shard, 4 * shard + 4):
                members += [(f"{n:04d}.png", png(n) if n != 5 else b"?"), (f"{n:04d}.txt", f"图{n}")]
            write_tar(tmp_path / f"s-{shard}.tar", members)
        return f"{tmp_path}/s-{{0..2}}.tar"

    @pytest.mark.parametrize("shuffled", [False, True])
    def test_goes_on_at_the_very_next_sample(self, shards, shuffled):
        def stream() -> StreamingPairs:
            pairs = tolerant(shards)
            return pairs.shuffle(seed=3, buffer_size=5) if shuffled else pairs

        whole = stream()
        whole.set_epoch(2)
        expected = [sample["text"] for sample in whole]
        assert len(expected) == 11
        for stop in range(12):
            first = stream()
            first.set_epoch(2)
            seen = []
            for sample in first if stop else ():
                seen.append(sample["text"])
                if len(seen) == stop:
                    break
            state = json.loads(json.dumps(first.state_dict()))
            resumed = stream()
            resumed.load_state_dict(state)
            assert seen + [sample["text"] for sample in resumed] == expected, f"stopped after {stop}"
            assert [sample["text"] for sample in resumed] == expected, "the next pass is a whole one"

    def test_a_state_of_the_other_kind(self, shards):
        with pytest.raises(ValueError, match="the state is of one in order, this is a shuffled stream"):
            tolerant(shards).shuffle().load_state_dict(tolerant(shards).state_dict())
