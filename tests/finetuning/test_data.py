"""Samples of every task, drawn negatives, validation splits, metrics."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_r2d2.finetuning.data import (
    ClassPairs,
    FinetuningCollator,
    FinetuningDataset,
    MatchingDataset,
    UniformNegatives,
    class_names,
)
from modeling_r2d2.finetuning.run import split_validation
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.records import stable_id

from .conftest import Colors


def batch_of(data, processor, task: str, rows=range(8), **options) -> dict:
    return FinetuningCollator(processor, task, **options)(data.__getitems__(list(rows)))


def test_retrieval_batches_tell_captions_apart(processor):
    batch = batch_of(FinetuningDataset(Colors(), processor), processor, "retrieval", (0, 8, 1))
    texts = [stable_id(Colors().texts(i)[0]) for i in (0, 8, 1)]
    assert batch["text_ids"].tolist() == texts
    assert texts[0] == texts[1] != texts[2]
    assert len(set(batch["image_ids"].tolist())) == 3
    plain = batch_of(FinetuningDataset(Colors(), processor), processor, "retrieval", multi_positive=False)
    assert "text_ids" not in plain


def test_one_of_several_captions_and_its_id(processor):
    class Two(Colors):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "text": ["红色", "蓝色"]}

    data = FinetuningDataset(Two(), processor, shuffle=True)
    tokens = {text: processor.tokenizer(text)["input_ids"] for text in ("红色", "蓝色")}
    seen = set()
    for sample in data.__getitems__(list(range(24))):
        (text,) = [t for t, ids in tokens.items() if ids == sample["input_ids"].tolist()]
        assert sample["text_ids"] == stable_id(text)
        seen.add(text)
    assert len(seen) == 2


def test_matching_draws_negatives_for_true_pairs(processor):
    pairs = Colors()
    data = MatchingDataset(pairs, processor, shuffle=True, passes=20)
    order = np.concatenate([data.permutation(number) for number in range(20)])
    samples = data.__getitems__(list(range(len(data))))
    own = {i: stable_id(pairs.texts(i)[0]) for i in range(24)}
    labels = np.array([sample["labels"] for sample in samples])
    assert 0.4 < labels.mean() < 0.6
    for sample, index in zip(samples, order, strict=True):
        assert (sample["text_ids"] == own[index]) == bool(sample["labels"])
    again = MatchingDataset(pairs, processor, shuffle=True, passes=20)[100]
    assert again["text_ids"] == samples[100]["text_ids"]
    batch = batch_of(data, processor, "matching")
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "labels"}


def test_matching_keeps_the_labels_that_are_given(processor):
    class Labelled(Colors):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "label": index % 2}

    batch = batch_of(MatchingDataset(Labelled(), processor), processor, "matching")
    assert batch["labels"].tolist() == [0, 1] * 4


def test_uniform_negatives_are_the_same_every_time():
    pairs = Colors()
    first, second = (UniformNegatives(pairs, pairs.image_ids()) for _ in range(2))
    assert len(first) == 48
    assert first.negatives == second.negatives
    assert [first[i]["label"] for i in (0, 23, 24, 47)] == [1, 1, 0, 0]
    for index in range(24):
        assert first[index]["text"] == pairs.texts(index)[0] == first.texts(index)[0]
        assert first[24 + index]["text"] != pairs.texts(index)[0]
        assert first[24 + index]["image_id"] == str(index)
    assert len(set(first.negatives)) > 4
    drawn = [UniformNegatives(pairs, pairs.image_ids(), seed).negatives for seed in range(200)]
    shares = np.array([[n == text for n in (d[0] for d in drawn)] for text in sorted({t for d in drawn for t in d})])
    assert shares.mean(axis=1).max() < 0.3  # seven other colours: 1/7 each


def test_a_broken_image_among_drawn_negatives_is_reported(processor, tmp_path):
    """As any other is: by the set that it comes from, and another pair takes its place."""
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
    rows = [json.dumps({"image": f"{n}.png", "text": text}) for n, text in enumerate("红橙黄绿蓝紫")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows), encoding="utf-8")
    pairs = load_pairs(tmp_path / "pairs.jsonl", max_error_rate=0.9)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])  # after loading
    negatives = UniformNegatives(pairs, pairs.image_ids())
    data = MatchingDataset(negatives, processor)
    assert all(data[place] is not None for place in range(12))
    assert "2.png" in pairs.report.summary()


def test_no_negative_to_draw():
    class One(Colors):
        def texts(self, index):
            return ["红色"]

    with pytest.raises(ValueError, match="no negative text for pair 0 in 100 draws"):
        UniformNegatives(One(), Colors().image_ids())


def test_caption_labels_are_the_tokens(processor):
    class Lengths(Colors):
        def texts(self, index):
            return ["红" * (1 + index)]

    batch = batch_of(FinetuningDataset(Lengths(), processor), processor, "caption", range(3))
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "labels"}
    real = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"][real], batch["input_ids"][real])
    assert (batch["labels"][~real] == -100).all()
    assert (~real).sum() == 3


def test_classes(processor):
    pairs = Colors()
    names = class_names(pairs)
    assert names == sorted(names)
    assert len(names) == 8
    labelled = ClassPairs(pairs, names)
    assert [labelled[i]["label"] for i in range(24)] == [names.index(pairs.texts(i)[0]) for i in range(24)]
    assert pickle.loads(pickle.dumps(labelled))[3] == labelled[3]  # data loader workers
    batch = batch_of(FinetuningDataset(labelled, processor), processor, "classification")
    assert batch.keys() == {"pixel_values", "labels"}
    with pytest.raises(ValueError, match=r"pair 1: '.*' is not one of the 1 classes"):
        ClassPairs(pairs, [pairs.texts(0)[0]])


def test_a_validation_split_shares_no_image():
    ids = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7])
    kept, held_out = split_validation(ids, 0.25, ids)
    assert sorted([*kept, *held_out]) == list(range(10))
    assert not set(ids[kept]) & set(ids[held_out])
    assert len(set(ids[held_out])) == 2
    with pytest.raises(ValueError, match="leaves 0 of 10 pairs"):
        split_validation(ids, 1.0, ids)
