"""Every code block of every card runs in a fresh process: without the package for models, with it for data sets."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_r2d2.hub_cards import check_card, dataset_card, demo_card, model_card
from modeling_r2d2.hub_cards.checking import code_blocks
from modeling_r2d2.hub_cards.facts import read_facts
from modeling_r2d2.integrations.converted_card import converted_card
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.datasets.check import check_pairs
from tests.helpers import tiny_image
from tests.hub_cards.conftest import KINDS
from tests.hub_cards.fresh import run_blocks

BLOCKS = {"pretrained": 3, "finetuned": 3, "matching": 1, "prd2": 2, "wukong": 2, "classification": 1, "captioning": 1}


def python_blocks(content, name):
    found = code_blocks(str(content))
    assert {language for language, _ in found} == {"python"}
    return [(f"{name}-{place}", code) for place, (_, code) in enumerate(found)]


def test_cards_of_models(folders, tmp_path):
    """All kinds, both languages (their code is the same but for comments), and the two older cards."""
    tiny_image().save(tmp_path / "picture.png")
    blocks = []
    for kind in KINDS:
        shutil.copytree(folders[kind], tmp_path / kind, ignore=shutil.ignore_patterns("checkpoint-*"))
        english = python_blocks(model_card(folders[kind]), kind)
        chinese = python_blocks(model_card(folders[kind], language="zh"), f"{kind}-zh")
        assert len(english) == len(chinese) == BLOCKS[kind]
        for (_, one), (_, other) in zip(english, chinese, strict=True):
            assert _without_comments(one) == _without_comments(other)
        blocks += english + (chinese if kind == "pretrained" else [])
    older = {"converted": _converted(folders["prd2"]), "demo": _demo()}
    for name, card in older.items():
        assert check_card(str(card)) == []
        shutil.copytree(folders["prd2"], tmp_path / name)
        blocks += python_blocks(card, name)
    printed = run_blocks(blocks, tmp_path, tmp_path / "home")
    assert list(printed) == [*(name for name, _ in blocks), "all done"]
    assert "tensor([[" in printed["pretrained-0"]
    assert len(json.loads(printed["pretrained-1"].strip().removeprefix("tensor(").removesuffix(")"))) == 2
    for name in ("pretrained-2", "wukong-1", "demo-0"):
        assert "'score'" in printed[name]
    assert "'label': '猫'" in printed["classification-0"]


def _without_comments(code):
    return [line.split("  #")[0] for line in code.splitlines()]


def _converted(folder):
    facts = read_facts(folder)
    report = SimpleNamespace(has_head=False, used={"a": "b"}, unused_by_reason=lambda: {"not read": ["c"]})
    return converted_card(facts.config, report, model_name="converted", checkpoint="prd2.pth", sha256="e" * 64)


def _demo():
    card = demo_card(model_name="R2D2 demo", repo="demo", figures={"Twitter": {"R@1": 50.0}}, training={}, split={})
    return str(card).replace("\nclassify(", "\nprint(classify(", 1).replace('"{}")', '"{}"))', 1)


@pytest.fixture
def pairs(tmp_path):
    """A file of five lines, one of which has no picture."""
    rows = [{"image": f"{place}.png", "text": f"第{place}只猫"} for place in range(4)] + [
        {"image": "x.png", "text": "狗"}
    ]
    for place in range(4):
        tiny_image(place, width=30 + 10 * place).save(tmp_path / f"{place}.png")
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "pairs.jsonl"


def _check(path):
    return check_pairs(load_pairs(str(path), max_error_rate=1.0, check_images="exists"), sample=0)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_card_of_a_data_set(language, pairs):
    unknown = {"en": "unknown", "zh": "未知"}[language]
    bare = dataset_card(_check(pairs), name="猫", path="pairs.jsonl", language=language)
    assert check_card(str(bare), "dataset") == []
    assert bare.data.size_categories == ["n<1K"]
    assert bare.data.license == "unknown"
    assert bare.text.count(f"| {unknown} |") == 3
    full = dataset_card(
        _check(pairs),
        name="猫",
        path="pairs.jsonl",
        language=language,
        license="cc-by-4.0",
        image_license="own terms",
        origin="drawn by hand",
        limits=["只有猫。"],
    )
    assert unknown not in full.text
    for text in ("| 4 |", "| 1 of 5 |" if language == "en" else "| 1 / 5 |", "30 | 38 | 45 | 52 | 60 |", "只有猫。"):
        assert text in full.text, text


def test_code_of_a_data_set_card(pairs, tmp_path):
    card = dataset_card(_check(pairs), name="猫", path="pairs.jsonl", reading={"format": "jsonl", "split": None})
    pairs.write_text("".join(pairs.read_text(encoding="utf-8").splitlines(keepends=True)[:4]), encoding="utf-8")
    printed = run_blocks(python_blocks(card, "data"), tmp_path, tmp_path / "home", package=True)
    assert printed["data-0"] == "4 第0只猫 (30, 30)\n"


def test_data_sets_that_get_no_card(pairs):
    found = _check(pairs)
    with pytest.raises(ValueError, match="'de'"):
        dataset_card(found, name="x", path="x", language="de")
    found.pairs = 0
    with pytest.raises(ValueError, match="no whole pair"):
        dataset_card(found, name="x", path="x")


def test_size_categories():
    from modeling_r2d2.hub_cards.dataset import size_category

    sizes = {1: "n<1K", 999: "n<1K", 1000: "1K<n<10K", 250_000_000: "100M<n<1B", 10**13: "n>1T"}
    assert {size: size_category(size) for size in sizes} == sizes


def test_docs_name_every_template():
    """A template without a reader is dead."""
    import modeling_r2d2.hub_cards as package

    folder = Path(package.__file__).parent
    readers = [*folder.glob("*.py"), Path(converted_card.__code__.co_filename)]
    code = "".join(path.read_text(encoding="utf-8") for path in readers)
    for template in folder.glob("*.jinja"):
        stem = template.name.replace("_en.", "_{language}.").replace("_zh.", "_{language}.")
        assert stem in code, template.name
