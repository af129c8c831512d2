"""What frozen towers make of a set, kept on the disk: exact, resumed, and nobody else's."""

import json
import logging
from collections import namedtuple

import pytest
import torch
from PIL import Image

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.inference.encoding import encode_images, encode_texts
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.training import kept_states
from modeling_r2d2.training.frozen_towers import frozen_towers_data
from modeling_r2d2.training.kept_states import KeptStates
from modeling_r2d2.training.pretraining import build_trainer, pretrain
from tests.processes import in_two_processes
from tests.training.test_frozen_towers import Shared, build_and_train, ranker_settings
from tests.training.test_trainer import Colors, assert_equal, model, processor, weights  # noqa: F401


class Others(Colors):
    def __getitem__(self, index: int) -> dict:
        return super().__getitem__((index + 1) % 24)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of eight pictures, batches of three."""
    for name, value in {"_BATCH": 3, "_IMAGE_PART": 8, "_TEXT_PART": 6}.items():
        monkeypatch.setattr(kept_states, name, value)


def data(network, processor, folder, pairs=None, **options):  # noqa: F811
    pairs = Shared() if pairs is None else pairs
    return frozen_towers_data(network, processor, pairs, folder, steps=4, step_size=8, **options)


@pytest.fixture
def seen(monkeypatch):
    """Of each pass of an image tower the number of pictures, the one that tells the layout left out."""
    passes = []
    whole = R2D2ForPreTraining.get_image_features

    def counted(self, pixel_values, **kwargs):
        passes.append(len(pixel_values))
        return whole(self, pixel_values, **kwargs)

    monkeypatch.setattr(R2D2ForPreTraining, "get_image_features", counted)
    return passes


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_states_and_embeddings_are_the_towers_own(processor, tmp_path, precision, monkeypatch):  # noqa: F811
    monkeypatch.setattr(kept_states, "_FILE", 1 << 10)
    network = model(dropout=0.1).train()
    network.freeze_towers()
    dataset, collator = data(network, processor, tmp_path / "s", precision=precision)
    assert isinstance(collator.images, KeptStates)
    expected = encode_images(network, processor, [Shared()[row]["image"] for row in dataset.listing.rows])
    found = collator.images.inputs(list(range(24)))["image_states"]
    near = {"float32": 0, "float16": 1e-3, "int8": 2e-2}[precision] * float(expected.states.abs().max())
    torch.testing.assert_close(found, expected.states, rtol=0, atol=max(near, 1e-6))
    torch.testing.assert_close(dataset.negatives.image_embeds, expected.embeds, rtol=0, atol=1e-6)
    texts = encode_texts(network, processor, dataset.listing.texts)
    logits = dataset.negatives.text_embeds * float(network.current_temperature())
    torch.testing.assert_close(logits, texts.embeds, rtol=0, atol=1e-5)
    assert len(list((tmp_path / "s").glob(f"{precision}-*.states"))) > 1


def test_without_room_the_run_is_the_same(processor, tmp_path, monkeypatch, caplog):  # noqa: F811
    """Bit for bit, whether states are kept, not wanted, or find no room; what happens is said in one line."""
    with caplog.at_level(logging.INFO, "modeling_r2d2.training.kept_states"):
        kept = pretrain(model(), processor, Shared(), ranker_settings(tmp_path / "kept", max_steps=3))
    [line] = [record.getMessage() for record in caplog.records if "keeping the states" in record.getMessage()]
    assert "the states of 24 pictures" in line
    assert str(tmp_path / "kept.states") in line
    unwanted = pretrain(model(), processor, Shared(), ranker_settings(tmp_path / "fly", max_steps=3, states="none"))
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(kept_states.shutil, "disk_usage", lambda _: disk(1, 1, 1 << 28))
    full = pretrain(model(), processor, Shared(), ranker_settings(tmp_path / "full", max_steps=3))
    assert "no room in" in caplog.text
    for run in (unwanted, full):
        for name, tensor in weights(kept.model).items():
            torch.testing.assert_close(run.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-7, msg=name)
    assert list((tmp_path / "kept.states").glob("*.states"))
    assert not list((tmp_path / "full.states").glob("*.states"))


@pytest.mark.parametrize("after", [2, 4, 7])
def test_interrupted_encoding_goes_on(processor, tmp_path, seen, monkeypatch, after):  # noqa: F811
    counted = R2D2ForPreTraining.get_image_features

    def killed(self, pixel_values, **kwargs):
        if len(seen) == after:
            raise KeyboardInterrupt
        return counted(self, pixel_values, **kwargs)

    monkeypatch.setattr(R2D2ForPreTraining, "get_image_features", killed)
    with pytest.raises(KeyboardInterrupt):
        data(model(), processor, tmp_path / "s")
    monkeypatch.setattr(R2D2ForPreTraining, "get_image_features", counted)
    seen.clear()
    dataset, collator = data(model(), processor, tmp_path / "s")
    assert sum(seen) - 1 == 24 - 8 * ((after - 1) // 3)  # three batches a part, after one for the layout
    _, fresh = data(model(), processor, tmp_path / "fresh")
    rows = list(range(24))
    assert torch.equal(collator.images.inputs(rows)["image_states"], fresh.images.inputs(rows)["image_states"])
    seen.clear()
    data(model(), processor, tmp_path / "s")
    assert seen == [1]


def test_a_new_ranker_takes_what_the_same_towers_made(processor, tmp_path, seen):  # noqa: F811
    first = model()
    data(first, processor, tmp_path / "s")
    second = model()
    for name, parameter in second.named_parameters():
        if "_encoder." in name or "match_head" in name:
            torch.nn.init.normal_(parameter)
    seen.clear()
    data(second, processor, tmp_path / "s")
    assert seen == [1]


@pytest.mark.parametrize("other", ["towers", "pictures", "texts"])
def test_another_store_is_neither_read_nor_removed(processor, tmp_path, other):  # noqa: F811
    folder = tmp_path / "s"
    data(model(), processor, folder)
    (folder / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    network, pairs = model(), Shared()
    if other == "towers":
        network.vision_projection.weight.data[0, 0] += 1
    if other == "pictures":
        pairs = [{**Shared()[row], "image": Image.new("RGB", (32, 32), (row, 0, 0))} for row in range(24)]
    if other == "texts":
        pairs = [{**Shared()[row], "text": f"{row}红"} for row in range(24)]
    with pytest.raises(ValueError, match=f"made, but of other {other}: remove that folder"):
        data(network, processor, folder, pairs)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    _, collator = data(network, processor, folder, pairs, replace=True)
    assert (folder / "mine.txt").read_text() == "mine"
    _, fresh = data(network, processor, tmp_path / "fresh", pairs)
    one = [collator.images.inputs([3])["image_states"], fresh.images.inputs([3])["image_states"]]
    assert torch.equal(*one)


def test_a_folder_of_something_else_is_refused(processor, tmp_path):  # noqa: F811
    (tmp_path / "run.states").mkdir()
    (tmp_path / "run.states" / "letters.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds something else \(letters.txt\)"):
        build_trainer(model(), processor, Shared(), ranker_settings(tmp_path / "run", overwrite=True))
    assert [path.name for path in (tmp_path / "run.states").iterdir()] == ["letters.txt"]


def test_damage_is_noticed(processor, tmp_path):  # noqa: F811
    _, collator = data(model(), processor, tmp_path / "s")
    [path] = (tmp_path / "s").glob("*.states")
    content = bytearray(path.read_bytes())
    content[3 * collator.images.dtype.itemsize + 5] ^= 1
    path.write_bytes(content)
    collator.images.inputs([0, 1, 2, 4])
    with pytest.raises(ValueError, match=r"was changed after it was written \(record 3\)"):
        collator.images.inputs([2, 3])
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match="is damaged"):
        data(model(), processor, tmp_path / "s")[1].images.inputs([2, 3])


def test_broken_images_are_counted_and_never_drawn(processor, tmp_path):  # noqa: F811
    """As when training: within the share that may be bad they are left out of pairs and negatives."""
    lines = []
    for number in range(20):
        name = f"{number}.png"
        Image.new("RGB", (32, 32), (10 * number, 99, 30)).save(tmp_path / name)
        lines.append(json.dumps({"image": name, "text": f"{'红绿蓝黄'[number % 4]}{number}"}, ensure_ascii=False))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs = load_pairs(tmp_path / "pairs.jsonl", max_error_rate=0.2)
    for number in (3, 11):
        whole = (tmp_path / f"{number}.png").read_bytes()
        (tmp_path / f"{number}.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):  # the second time from the store
        dataset, collator = data(model(), processor, tmp_path / "s", pairs)
        assert len(dataset.pairs) == len(dataset.listing.rows) == len(dataset.negatives.image_embeds) == 18
        expected = encode_images(model(), processor, [tmp_path / f"{n}.png" for n in range(20) if n not in (3, 11)])
        found = collator.images.inputs(list(range(18)))["image_states"]
        torch.testing.assert_close(found, expected.states, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(dataset.negatives.image_embeds, expected.embeds, rtol=0, atol=1e-6)
        texts = encode_texts(model(), processor, dataset.listing.texts).embeds
        own = dataset.negatives.text_embeds * float(model().current_temperature())
        torch.testing.assert_close(own, texts, rtol=0, atol=1e-5)
    assert pairs.report.errors >= 2


def test_one_image_of_many_captions_is_encoded_once(processor, tmp_path, seen):  # noqa: F811
    Image.new("RGB", (32, 32), (200, 99, 30)).save(tmp_path / "a.png")
    Image.new("RGB", (32, 32), (20, 99, 130)).save(tmp_path / "b.png")
    rows = [{"image": f"{'ab'[n % 2]}.png", "text": f"{n}红"} for n in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    dataset, _ = data(model(), processor, tmp_path / "s", load_pairs(tmp_path / "pairs.jsonl"))
    assert sum(seen) == 1 + 2
    wrong = {(sample["image"], sample["wrong_image"]) for sample in dataset.__getitems__(list(range(10)))}
    assert wrong == {(0, 1), (1, 0)}


def _worker(number: int, folder: str) -> dict:
    kept_states._BATCH, kept_states._IMAGE_PART, kept_states._TEXT_PART = 3, 8, 6
    passes = []
    whole = R2D2ForPreTraining.get_image_features

    def counted(self, pixel_values, **kwargs):
        passes.append(len(pixel_values))
        return whole(self, pixel_values, **kwargs)

    R2D2ForPreTraining.get_image_features = counted
    options = ranker_settings(folder, max_steps=3, per_device_train_batch_size=4)
    options.arguments = {**options.arguments, "optim": "sgd", "ddp_backend": "gloo"}
    return {"weights": weights(build_and_train(options)), "seen": sum(passes)}


def test_two_processes_share_the_work_and_equal_one(tmp_path):
    found = in_two_processes(_worker, str(tmp_path / "two"), launched=True)
    assert_equal(found[0]["weights"], found[1]["weights"])
    assert sorted(each["seen"] for each in found) == [1 + 8, 1 + 16]  # two parts and one
    options = ranker_settings(tmp_path / "one", max_steps=3, per_device_train_batch_size=8)
    options.arguments = {**options.arguments, "optim": "sgd"}
    for name, tensor in weights(build_and_train(options)).items():
        torch.testing.assert_close(found[0]["weights"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
