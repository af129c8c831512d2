"""Tar shards and other files read as a stream: sharing among workers, resuming, bad samples."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.report import DataRefusedError
from modeling_r2d2.processing.datasets.streaming import StreamingPairs

from .conftest import png


def write_tar(path: Path, members: list[tuple[str, bytes | str]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            data = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path) -> str:
    """Three shards of four samples: 图0 ... 图11."""
    for shard in range(3):
        members = []
        for n in range(4 * shard, 4 * shard + 4):
            members += [(f"{n:04d}.png", png(n)), (f"{n:04d}.txt", f"图{n}")]
        write_tar(tmp_path / f"s-{shard:03d}.tar", members)
    return f"{tmp_path}/s-{{000..002}}.tar"


def texts(samples) -> list[str]:
    return [sample["text"] for sample in samples]


ALL = [f"图{n}" for n in range(12)]


def test_samples(shards):
    pairs = load_pairs(shards)
    assert isinstance(pairs, StreamingPairs)
    assert pairs.num_shards == 3
    samples = list(pairs)
    assert texts(samples) == ALL
    assert samples[5]["image"].size == (12, 10)
    assert samples[5]["image_id"] == "s-001.tar/0005"
    assert samples[5]["location"].endswith("s-001.tar/0005:2")
    assert pairs.report.seen == 12
    assert pairs.report.errors == 0


@pytest.mark.parametrize("kind", ["tar", "jsonl", "folder"])
def test_images_of_one_name_in_two_folders_are_two(tmp_path, kind):
    for n, shop in enumerate(("一店", "二店")):
        (tmp_path / shop).mkdir()
        if kind == "tar":
            write_tar(tmp_path / shop / "0.tar", [("1.png", png(n)), ("1.txt", f"图{n}")])
            continue
        (tmp_path / shop / "1.png").write_bytes(png(n))
        name = "pairs.jsonl" if kind == "jsonl" else "captions.jsonl"
        (tmp_path / shop / name).write_text(json.dumps({"image": "1.png", "text": f"图{n}"}), encoding="utf-8")
    names = {"tar": "0.tar", "jsonl": "pairs.jsonl", "folder": ""}
    files = [str(tmp_path / shop / names[kind]) for shop in ("一店", "二店")]
    within = "0.tar/1" if kind == "tar" else "1.png"
    both = list(load_pairs(files, streaming=True))
    assert texts(both) == ["图0", "图1"]
    assert [s["image_id"] for s in both] == [str(tmp_path / shop / within) for shop in ("一店", "二店")]
    assert [s["image_id"] for s in load_pairs(files[:1], streaming=True)] == [within]


def test_a_stream_tells_whether_its_pairs_are_labelled(tmp_path):
    member = json.dumps({"caption": "猫", "match": 1})
    path = write_tar(tmp_path / "x.tar", [("1.png", png(0)), ("1.json", member)])
    assert not load_pairs(path).labelled
    labelled = load_pairs(path, columns={"label": "match"})
    assert labelled.labelled
    assert [sample["label"] for sample in labelled] == [1]
    members = [("1.png", png(0)), ("1.json", member), ("1.txt", "狗"), ("2.png", png(1)), ("2.txt", "鸟")]
    mixed = load_pairs(write_tar(tmp_path / "y.tar", members), columns={"label": "match"}, max_error_rate=1.0)
    assert [(sample["text"], sample["label"]) for sample in mixed] == [("狗", 1)]
    assert "no column 'match'" in mixed.report.problems[0].reason


def test_shards_have_no_columns_to_list(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("1.png", png(0)), ("1.json", "{}"), ("1.txt", "猫")])
    with pytest.raises(DataRefusedError, match="1 bad of 1 records"):
        list(load_pairs(path, columns=["image", "text", "image_id"]))


def test_columns_named_by_a_list(image_folder):
    for name, numbers in (("a", (0, 1)), ("b", (2, 3))):
        lines = "".join(f"{n}.png,图{n}\n" for n in numbers)
        (image_folder / f"{name}.csv").write_text(lines, encoding="utf-8")
    pairs = load_pairs(str(image_folder / "?.csv"), columns=["image", "text"], streaming=True)
    assert texts(pairs) == ALL[:4]
    assert sorted(texts(DataLoader(pairs.shuffle(0), batch_size=None, num_workers=2))) == ALL[:4]


def test_streams_of_a_published_set_find_each_files_own_images(tmp_path):
    for n in range(2):
        folder = tmp_path / f"wukong{n}" / "00000"
        folder.mkdir(parents=True)
        (folder.parent / "00000_stats.json").write_text('{"count": 1, "status_dict": {"success": 1}}')
        (folder / "0.png").write_bytes(png(n))
        (folder / "0.json").write_text(json.dumps({"caption": f"图{n}", "url": f"http://x/{n}"}), encoding="utf-8")
    folders = [str(tmp_path / f"wukong{n}") for n in range(2)]
    streamed, listed = (list(load_pairs(folders, format="wukong", streaming=way)) for way in (True, False))
    assert [s["image_id"] for s in streamed] == [s["image_id"] for s in listed] == ["http://x/0", "http://x/1"]
    assert [s["image"].tobytes() for s in streamed] == [s["image"].tobytes() for s in listed]
    assert streamed[0]["image"].tobytes() != streamed[1]["image"].tobytes()


def test_captions_in_json(tmp_path):
    members = [
        ("a/1.jpg", png(0)),
        ("a/1.json", json.dumps({"caption": ["一", "二"], "image_id": 5, "width": 3})),
        ("a/2.png", png(1)),
        ("a/2.json", json.dumps({"title": "三"})),
        ("a/2.txt", "四"),
        ("a/._2.txt", "?"),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    samples = list(load_pairs(path, max_error_rate=1.0))
    assert [(s["text"], s["image_id"]) for s in samples] == [(["一", "二"], "5"), ("四", "x.tar/a/2")]
    path = write_tar(tmp_path / "y.tar", members[2:4])
    assert texts(load_pairs(path, columns={"text": "title"})) == ["三"]


def test_bad_samples_are_reported_with_shard_and_key(tmp_path):
    members = [
        ("0.png", png(0)),
        ("0.txt", "好"),
        ("1.png", png(1)),
        ("2.txt", "无图"),
        ("3.png", png(3)[:150]),
        ("3.txt", "半"),
        ("4.png", png(4)),
        ("4.txt", " "),
        ("5.png", png(5)),
        ("5.json", "{"),
        ("6.png", png(6)),
        ("6.txt", "好"),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    pairs = load_pairs(path, max_error_rate=1.0)
    assert texts(pairs) == ["好", "好"]
    reasons = {p.source.removeprefix(f"{path}/"): p.reason for p in pairs.report.problems}
    assert list(reasons) == ["1", "2", "3", "4", "5"]
    assert "no column for the text" in reasons["1"]
    assert "no picture among its members ['txt']" in reasons["2"]
    assert "cannot be decoded" in reasons["3"]
    assert "empty caption" in reasons["4"]
    assert "cannot be read" in reasons["5"]
    with pytest.raises(DataRefusedError, match="5 bad of 7"):
        list(load_pairs(path))
    with pytest.raises(DataRefusedError, match="1 bad of 2"):
        list(load_pairs(path, on_error="refuse"))


def test_shard_that_ends_early_or_is_none(tmp_path, shards):
    whole = Path(shards.replace("{000..002}", "000")).read_bytes()
    none = tmp_path / "none.tar"
    none.write_text("nothing")
    pairs = load_pairs(none, max_error_rate=1.0)
    assert list(pairs) == []
    assert "cannot be read from here on" in pairs.report.problems[0].reason
    end = len(whole.rstrip(b"\0"))
    for cut in range(100, end, 37):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        pairs = load_pairs(path, max_error_rate=1.0)
        assert len(list(pairs)) < 4
        reason = pairs.report.problems[-1].reason
        assert "cannot be read from here on" in reason or "ends early" in reason


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_shards(shards, workers):
    loader = DataLoader(load_pairs(shards), batch_size=None, num_workers=workers)
    assert sorted(texts(loader), key=ALL.index) == ALL


def test_processes_share_the_shards(shards):
    parts = [texts(load_pairs(shards).shard_over_processes(rank, 3)) for rank in range(3)]
    assert sorted(sum(parts, []), key=ALL.index) == ALL
    assert [len(part) for part in parts] == [4, 4, 4]


def test_resume(shards):
    pairs, seen = load_pairs(shards), []
    for sample in pairs:
        seen.append(sample["text"])
        if len(seen) == 6:
            state = pairs.state_dict()
            break
    resumed = load_pairs(shards)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert seen + texts(resumed) == ALL


def test_shuffle(shards):
    pairs = load_pairs(shards).shuffle(seed=1, buffer_size=5)
    first = texts(pairs)
    assert first == texts(load_pairs(shards).shuffle(seed=1, buffer_size=5))
    pairs.set_epoch(1)
    second = texts(pairs)
    assert sorted(first, key=ALL.index) == sorted(second, key=ALL.index) == ALL
    assert first != second != ALL != first


@pytest.mark.parametrize("format", ["jsonl", "csv"])
def test_other_files_as_a_stream(image_folder, format):
    if format == "jsonl":
        rows = [json.dumps({"image": f"{n}.png", "text": f"图{n}"}) for n in range(3)] + ["?"]
    else:
        rows = ["image,text", *(f"{n}.png,图{n}" for n in range(3)), "?"]
    (image_folder / f"data.{format}").write_text("\n".join(rows), encoding="utf-8")
    pairs = load_pairs(image_folder / f"data.{format}", streaming=True, max_error_rate=0.5)
    assert texts(pairs) == ALL[:3]
    assert pairs.report.problems[0].line == len(rows)
    assert [s["image_id"] for s in pairs] == ["0.png", "1.png", "2.png"]


def test_what_cannot_be_streamed(image_folder):
    (image_folder / "x.parquet").write_text("")
    with pytest.raises(ValueError, match="memory-mapped"):
        load_pairs(image_folder / "x.parquet", streaming=True)
