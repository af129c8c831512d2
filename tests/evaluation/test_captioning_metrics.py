"""Caption metrics against pycocoevalcap 1.2 (its values written down, and itself where it is installed)."""

import numpy as np
import pytest

from modeling_r2d2.evaluation.captioning import bleu4, caption_tokens, captioning_metrics, cider, rouge_l
from modeling_r2d2.evaluation.chinese_captioning import ChineseCaptioning
from modeling_r2d2.inference.bootstrap import Bootstrap

CAPTIONS = [
    "一只小狗在草地上奔跑",
    "两个男人在打篮球",
    "一个女人撑着伞",
    "红色的汽车停在路边",
    "山",
    "一只猫，坐在沙发上。",
    "蓝天白云",
]
REFERENCES = [
    ["一只黄色的小狗在草地上奔跑", "小狗在绿色的草地上跑", "草地上有一只狗在奔跑"],
    ["两个男人在球场上打篮球", "两个人在打球"],
    ["一个女人打着一把红色的伞走在街上"],
    ["一辆红色的汽车停在马路边", "路边停着一辆红色的车", "红色的汽车"],
    ["高高的雪山", "山"],
    ["一只猫坐在沙发上", "沙发上坐着一只白猫"],
    ["大海和沙滩"],
]
# pycocoevalcap 1.2 on the characters of the above, punctuation dropped
CIDER = [4.674885136571063, 4.4981970547431915, 1.0526664954688345, 4.542434316523509, 1.6558370881826734]
CIDER += [6.725613762276539, 0.0]
BLEU = 0.6143323500611484
ROUGE = [0.8495821727019499, 1.0, 0.4873501997336884, 1.0, 1.0, 1.0, 0.0]


def test_tokens():
    assert caption_tokens("一只 Ｃat，坐在 SOFA2 上！\n") == ["一", "只", "cat", "坐", "在", "sofa2", "上"]
    assert caption_tokens("。，…") == []


def test_values_of_pycocoevalcap():
    assert cider(CAPTIONS, REFERENCES) == pytest.approx(CIDER, abs=1e-12)
    assert bleu4(CAPTIONS, REFERENCES) == pytest.approx(100 * BLEU, abs=1e-9)
    assert rouge_l(CAPTIONS, REFERENCES) == pytest.approx([100 * value for value in ROUGE], abs=1e-9)


def test_pycocoevalcap_itself():
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="its 100 MB are in no extra")
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.rouge.rouge import Rouge

    generator = np.random.default_rng(0)

    def sentence() -> str:
        return "".join(generator.choice(list("一二三四五六七"), generator.integers(1, 12)))

    for _ in range(20):
        captions = [sentence() for _ in range(9)]
        references = [[sentence() for _ in range(generator.integers(1, 5))] for _ in range(9)]
        cider_scorer, bleu_scorer, rouge = scorer.CiderScorer(), BleuScorer(n=4), []
        for caption, refs in zip(captions, references, strict=True):
            spaced = " ".join(caption), [" ".join(ref) for ref in refs]
            cider_scorer += spaced
            bleu_scorer += spaced
            rouge.append(100 * Rouge().calc_score([spaced[0]], spaced[1]))
        assert cider(captions, references) == pytest.approx(cider_scorer.compute_score()[1])
        assert bleu4(captions, references) == pytest.approx(100 * bleu_scorer.compute_score(option="closest")[0][3])
        assert rouge_l(captions, references) == pytest.approx(rouge)


def common_subsequence(a: str, b: str) -> int:
    """The textbook table."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def test_rouge_by_the_textbook():
    generator = np.random.default_rng(1)
    for _ in range(50):
        a, b = ("".join(generator.choice(list("甲乙丙丁"), generator.integers(1, 90))) for _ in range(2))
        common = common_subsequence(a, b)
        precision, recall = common / len(a), common / len(b)
        expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision) if common else 0
        assert rouge_l([a], [[b]])[0] == pytest.approx(100 * expected)


def test_cider_by_hand():
    """Two pictures, "猫" against "猫": of n = 1 … 4 only n = 1 exists, cosine 1, so 10 · (1 + 0 + 0 + 0) / 4."""
    assert cider(["猫", "狗狗"], [["猫"], ["马"]]).tolist() == pytest.approx([2.5, 0])
    # an n-gram of every picture says nothing: its weight is log 1
    assert cider(["猫", "猫"], [["猫"], ["猫"]]).tolist() == [0, 0]


def test_perfect_and_empty_captions():
    references = [["一只小狗在跑", "小狗"], ["蓝色的天空下"]]
    metrics, _ = captioning_metrics(["一只小狗在跑", "蓝色的天空下"], references)
    assert metrics["bleu4"] == pytest.approx(100, abs=1e-6)
    assert metrics["rouge_l"] == metrics["exact_match"] == 100
    metrics, _ = captioning_metrics(["", "。"], references)
    assert metrics == pytest.approx({"bleu4": 0, "rouge_l": 0, "cider": 0, "exact_match": 0}, abs=1e-6)
    assert captioning_metrics(["小狗。", "天"], references)[0]["exact_match"] == 50


def test_intervals_equal_a_loop_over_resamples():
    bootstrap = Bootstrap(150, seed=2)
    metrics, intervals = captioning_metrics(CAPTIONS, REFERENCES, bootstrap)
    assert metrics["cider"] == pytest.approx(np.mean(CIDER))
    draws = np.random.default_rng(2).integers(0, 7, (150, 7))
    means = [np.mean([CIDER[place] for place in places]) for places in draws]
    assert intervals["cider"] == pytest.approx(np.percentile(means, [2.5, 97.5]))
    bleus = [bleu4([CAPTIONS[p] for p in places], [REFERENCES[p] for p in places]) for places in draws]
    assert intervals["bleu4"] == pytest.approx(np.percentile(bleus, [2.5, 97.5]))


@pytest.mark.parametrize(
    ("captions", "references", "reason"),
    [
        ("一只猫", ["猫"], "one string"),
        (["猫", "狗"], [["猫"]], "2 captions for 1"),
        (["猫", "狗"], [["猫"], []], "references of caption 1"),
        (["猫", "狗"], ["猫", ["狗"]], "references of caption 0"),
        (["猫"], [["猫"]], "at least 2"),
    ],
)
def test_wrong_input(captions, references, reason):
    with pytest.raises(ValueError, match=reason):
        captioning_metrics(captions, references)


def test_evaluate_module_alone():
    import evaluate

    from modeling_r2d2.evaluation import chinese_captioning

    for metric in (ChineseCaptioning(), evaluate.load(chinese_captioning.__file__)):
        result = metric.compute(predictions=CAPTIONS, references=REFERENCES)
        assert result["cider"] == pytest.approx(np.mean(CIDER))
        assert result["bleu4"] == pytest.approx(100 * BLEU)
