"""What a run says before it starts."""

import json
from pathlib import Path

import pytest

from modeling_r2d2.finetuning import build_trainer, load_for
from modeling_r2d2.finetuning.report import check_splits, false_negatives, make_report, summarise, trained_on
from modeling_r2d2.processing.datasets import load_pairs
from tests.helpers import tiny_image

from .conftest import Colors, settings


def report_of(base, run_settings, pairs=None, validation=None):
    pairs = pairs or Colors(240)
    model, processor = load_for(run_settings.task, base)
    trainer = build_trainer(model, processor, pairs, run_settings)
    return make_report(
        trainer.model, processor, pairs, pairs.image_ids(), run_settings, trainer.steps_per_epoch, 1, validation
    )


def test_what_trains_on_how_much(base, tmp_path):
    report = report_of(base, settings(tmp_path), validation=Colors(5))
    model, _ = load_for("retrieval", base)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert report.frozen == {"vision_model": sizes["vision_model"]}
    assert report.trainable == {n: s for n, s in sizes.items() if n != "vision_model"} | {"temperature": 1}
    data = report.data
    assert (data.pairs, data.images, data.distinct_texts, data.most_repeated) == (240, 240, 8, 30)
    assert (report.batch, report.steps_per_epoch, report.epochs, report.validation_pairs) == (8, 30, 2, 5)
    text = "\n".join(report.lines())
    total = sum(sizes.values()) + 1
    assert f"{sum(report.trainable.values()):,} of {total:,} parameters train" in text
    assert "240 pairs of 240 pictures, 8 different texts" in text


def test_a_sound_run_gets_no_warning(base, tmp_path):
    sound = settings(
        tmp_path,
        per_device_train_batch_size=16,
        num_train_epochs=20,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        patience=2,
    )
    assert report_of(base, sound, validation=Colors(9)).warnings == ()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"multi_positive": False}, "others of the same caption in a batch, and they count as negatives"),
        ({"per_device_train_batch_size": 8}, "only 8 pairs are compared at a time"),
        (
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2},
            "gradient accumulation adds no negatives",
        ),
        ({"freeze": ("temperature",)}, "the temperature is frozen"),
        (
            {"lr_scheduler_type": "retrieval"},
            "within the 500 warm-up steps; the published ones are made for large sets",
        ),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 500}, "within the 500 warm-up steps"),
        ({"num_train_epochs": 1}, "15 steps are few"),
        ({"patience": 2}, "no validation pairs: nothing can stop early"),
    ],
)
def test_warnings_of_what_makes_small_runs_fail(base, tmp_path, changes, warning):
    options = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 20,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0,
        **changes,
    }
    if changes == {"lr_scheduler_type": "retrieval"}:
        options["warmup_steps"] = 500
    found = report_of(base, settings(tmp_path, **options)).warnings
    assert len(found) == 1
    assert warning in found[0]


def test_few_images_and_unknown_characters(base, processor, tmp_path):
    class Repeated(Colors):
        def image_ids(self):
            return super().image_ids() % 5

        def texts(self, index):
            return ["红鳄鱼" if index == 3 else "红色的图片"]

    summary = summarise(Repeated(), Repeated().image_ids(), processor.tokenizer)
    # 23 texts of 7 tokens and one of 5, of which two are unknown
    assert summary.unknown_share == pytest.approx(2 / (23 * 7 + 5))
    assert summary.unknown_example == "红鳄鱼"
    warnings = report_of(base, settings(tmp_path, lr_scheduler_type="cosine", warmup_steps=0), Repeated()).warnings
    assert any("1.2 % of the text tokens are unknown to the tokenizer, as in '红鳄鱼'" in w for w in warnings)
    assert any("there are only 5" in w for w in warnings)


def test_false_negatives_are_counted_as_they_occur():
    """Of 24 pairs of 8 captions all in one batch: each meets two others of its caption."""
    pairs = Colors()
    assert false_negatives(pairs, pairs.image_ids(), 24) == 2.0
    assert false_negatives(pairs, pairs.image_ids() * 0, 24) == 0.0  # one picture: positives already


@pytest.mark.parametrize(
    ("validation", "test", "message"),
    [
        ("train.jsonl", (), "are the training data"),
        ("./a/../train.jsonl", (), "are the training data"),
        ("held.jsonl", ("x.jsonl", "held.jsonl"), "are test data"),
        ("long_itr_test.json", (), "test split by its name"),
        ("test/pairs.tsv", (), "test split by its name"),
    ],
)
def test_the_test_split_is_never_the_validation_split(validation, test, message):
    with pytest.raises(ValueError, match=message):
        check_splits("train.jsonl", validation, test)


def test_other_names_are_fine():
    check_splits("train.jsonl", "contest.jsonl", ("test.jsonl",))
    check_splits("train.jsonl", None, ("train.jsonl",))


def lines(*images: str) -> str:
    return "\n".join(json.dumps({"image": name, "text": f"{name}的图片"}) for name in images)


def test_validation_images_that_are_trained_on(tmp_path, monkeypatch, base):
    """By their files, whatever leads to them and whatever their captions; not by names within another folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        for number in range(4):
            tiny_image(number).save(f"{folder}/{number}.png")
        Path(folder, "train.jsonl").write_text(lines("0.png", "1.png", "2.png"))
        Path(folder, "held.jsonl").write_text(lines("2.png", "3.png", "../one/1.png"))
    Path("link").symlink_to("one")
    train = load_pairs("one/train.jsonl")
    found = {place: trained_on(train, load_pairs(place)) for place in ("link/held.jsonl", "two/held.jsonl")}
    assert found == {"link/held.jsonl": 2, "two/held.jsonl": 1}
    warnings = report_of(
        base, settings(tmp_path, per_device_train_batch_size=2), train, load_pairs(tmp_path / "one" / "held.jsonl")
    ).warnings
    assert any("2 of 3 validation pairs show pictures that are trained on" in warning for warning in warnings)


def test_validation_images_in_tables_are_known_by_their_bytes(tmp_path):
    """Every table may count its ids from 0."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "id": datasets.Value("int64")}
    )
    sets = []
    for images in ((0, 1, 2, 3), (0, 9, 2)):
        rows = {
            "image": [tiny_image(n) for n in images],
            "text": ["猫"] * len(images),
            "id": range(len(images)),
        }
        sets.append(load_pairs(datasets.Dataset.from_dict(rows, features=features)))
    assert trained_on(*sets) == 2
