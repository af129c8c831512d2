"""Masking: which tokens, how many, what becomes of them, and whole Chinese words."""

import builtins
import sys

import numpy as np
import pytest

from modeling_r2d2.processing.masking import IGNORE_INDEX, TextMasking, jieba_segmenter, mask_tokens, word_groups
from modeling_r2d2.processing.tokenization import build_character_tokenizer

TEXT = "一只红狗在草地上跑"
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer([TEXT, "狗", "abc 12", "两条黄鱼"])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ids_of(tokenizer, text: str = TEXT) -> np.ndarray:
    return np.array(tokenizer(text)["input_ids"])


def test_labels_are_the_originals_where_chosen(tokenizer):
    ids, masking = ids_of(tokenizer), TextMasking(tokenizer)
    for seed in range(100):
        masked, labels = masking(ids, rng(seed))
        assert masked.dtype == labels.dtype == np.int64
        chosen = labels != IGNORE_INDEX
        assert np.array_equal(labels[chosen], ids[chosen])
        assert np.array_equal(masked[~chosen], ids[~chosen])
        assert not chosen[[0, -1]].any()


def test_reproducible_and_the_input_is_left_alone(tokenizer):
    ids, masking = ids_of(tokenizer), TextMasking(tokenizer)
    before = ids.copy()
    first, again, other = (masking(np.tile(ids, 4), rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(ids, before)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])


def masked_counts(length: int, ratio: float, trials: int = 2000) -> np.ndarray:
    ids = np.arange(10, 10 + length)
    generator = rng()
    return np.array(
        [
            (
                mask_tokens(
                    ids,
                    generator,
                    mask_token_id=MASK,
                    ordinary_ids=np.arange(5, 100),
                    special_mask=np.zeros(length, dtype=bool),
                    mask_ratio=ratio,
                )[1]
                != IGNORE_INDEX
            ).sum()
            for _ in range(trials)
        ]
    )


@pytest.mark.parametrize("length", [1, 2, 3, 7, 10, 40])
def test_the_mean_share_is_the_ratio_of_every_length(length):
    """A short text has no mask more often than not."""
    counts = masked_counts(length, 0.15, 8000)
    assert set(np.abs(counts - 0.15 * length) < 1) == {True}
    assert abs(counts.mean() - 0.15 * length) < 0.02


def test_none_and_all():
    assert set(masked_counts(3, 0.0, 50)) == {0}
    assert set(masked_counts(5, 1.0, 50)) == {5}


def test_every_token_is_equally_likely():
    ids, generator, hits = np.arange(10, 20), rng(), np.zeros(10)
    for _ in range(4000):
        _, labels = mask_tokens(
            ids,
            generator,
            mask_token_id=MASK,
            ordinary_ids=np.arange(5, 100),
            special_mask=np.zeros(10, dtype=bool),
        )
        hits += labels != IGNORE_INDEX
    assert np.abs(hits / 4000 - 0.15).max() < 0.03


def test_80_10_10(tokenizer):
    ids, masking = ids_of(tokenizer, TEXT * 6), TextMasking(tokenizer, mask_ratio=1.0)
    became = {"mask": 0, "kept": 0, "random": 0}
    special = set(tokenizer.all_special_ids)
    for seed in range(200):
        masked, labels = masking(ids, rng(seed))
        for new, old in zip(masked[1:-1], labels[1:-1], strict=True):
            became["mask" if new == MASK else "kept" if new == old else "random"] += 1
            assert new == MASK or new not in special
    total = sum(became.values())
    assert abs(became["mask"] / total - 0.8) < 0.02
    # a random token is the old one now and then
    assert abs(became["random"] / total - 0.1) < 0.02


def test_special_tokens_are_never_touched(tokenizer):
    masking = TextMasking(tokenizer, mask_ratio=1.0)
    ids = ids_of(tokenizer, "狗喵狗")  # 喵 is unknown
    assert tokenizer.unk_token_id in ids
    masked, labels = masking(ids, rng())
    assert [label for label in labels if label != IGNORE_INDEX] == [ids[1], ids[3]]
    assert masked[2] == tokenizer.unk_token_id
    for text in ("", "喵"):
        masked, labels = masking(ids_of(tokenizer, text), rng())
        assert np.array_equal(masked, ids_of(tokenizer, text))
        assert (labels == IGNORE_INDEX).all()


class TestWholeWords:
    WORDS = ("一只", "红狗", "在", "草地上", "跑")

    def groups(self, tokenizer, text=TEXT, segment=None):
        encoded = tokenizer(text, return_offsets_mapping=True)
        return word_groups(encoded["offset_mapping"], text, segment or (lambda _: self.WORDS))

    def test_groups(self, tokenizer):
        groups = self.groups(tokenizer)
        assert groups[1:-1].tolist() == [0, 0, 1, 1, 2, 3, 3, 3, 4]
        assert len(set(groups[[0, -1]]) | set(groups[1:-1])) == 7

    def test_spaces_latin_words_and_missing_pieces(self, tokenizer):
        groups = self.groups(tokenizer, "abc 12狗 跑", lambda _: ["abc", "12", "狗"])
        assert groups[1:-1].tolist()[:6] == [0, 0, 0, 1, 1, 2]
        assert groups[-2] not in groups[:-2]

    def test_words_that_are_not_in_the_text(self, tokenizer):
        with pytest.raises(ValueError, match="'猫', which does not follow"):
            self.groups(tokenizer, segment=lambda _: ["一只", "猫"])

    def test_words_are_masked_whole(self, tokenizer):
        masking = TextMasking(tokenizer, mask_ratio=0.4, whole_words=True, segment=lambda _: self.WORDS)
        encoded = tokenizer(TEXT, return_offsets_mapping=True)
        groups = masking.groups(TEXT, encoded["offset_mapping"])
        counts = []
        for seed in range(200):
            _, labels = masking(np.array(encoded["input_ids"]), rng(seed), groups)
            chosen = labels[1:-1] != IGNORE_INDEX
            for number in range(5):
                assert len(set(chosen[groups[1:-1] == number])) == 1
            counts.append(chosen.sum())
        assert min(counts) >= 1
        assert max(counts) <= 6

    @pytest.mark.parametrize("ratio", [0.05, 0.15, 0.4])
    def test_the_mean_share_is_the_ratio_of_words_too(self, tokenizer, ratio):
        masking = TextMasking(tokenizer, mask_ratio=ratio, whole_words=True, segment=lambda _: self.WORDS)
        encoded = tokenizer(TEXT, return_offsets_mapping=True)
        groups, ids, generator = masking.groups(TEXT, encoded["offset_mapping"]), ids_of(tokenizer), rng()
        counts = [(masking(ids, generator, groups)[1] != IGNORE_INDEX).sum() for _ in range(8000)]
        assert abs(np.mean(counts) - ratio * len(TEXT)) < 0.06

    def test_jieba(self, tokenizer):
        pytest.importorskip("jieba")
        assert list(jieba_segmenter()("草地上的大象")) == ["草地", "上", "的", "大象"]
        masking = TextMasking(tokenizer, whole_words=True)
        assert masking.groups(TEXT, tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]) is not None

    def test_without_jieba_the_error_says_what_to_do(self, tokenizer, monkeypatch):
        real = builtins.__import__

        def refuse(name, *args, **kwargs):
            if name == "jieba":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.delitem(sys.modules, "jieba", raising=False)
        monkeypatch.setattr(builtins, "__import__", refuse)
        with pytest.raises(ImportError, match=r"modeling-r2d2\[wwm\].*segment"):
            TextMasking(tokenizer, whole_words=True)
        assert TextMasking(tokenizer, whole_words=True, segment=list).segment is list


def test_wrong_settings(tokenizer):
    for wrong in ({"mask_ratio": 1.5}, {"mask_share": 0.9, "random_share": 0.2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            TextMasking(tokenizer, **wrong)
