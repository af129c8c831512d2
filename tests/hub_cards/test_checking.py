"""The offline check of cards: a good one passes, and every way to be wrong is found."""

import re

import pytest
import yaml

from modeling_r2d2.hub_cards import CardError, check_card
from modeling_r2d2.hub_cards.checking import code_blocks, known_pipeline_tags, load_card
from modeling_r2d2.hub_cards.licenses import HUB_LICENSES, DataSource, license_fields

HEADER = {
    "language": "zh",
    "license": "apache-2.0",
    "library_name": "transformers",
    "pipeline_tag": "zero-shot-image-classification",
    "tags": ["r2d2"],
    "base_model": "owner/name",
    "datasets": ["owner/data"],
    "model-index": [
        {
            "name": "m",
            "results": [
                {
                    "task": {"type": "retrieval"},
                    "dataset": {"name": "MUGE", "type": "muge"},
                    "metrics": [{"type": "recall", "value": 12.5, "name": "R@1"}],
                }
            ],
        }
    ],
}


def content(body="# m\n\n```python\nprint(1)\n```\n", **changes):
    header = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    return f"---\n{yaml.safe_dump(header, allow_unicode=True)}---\n\n{body}"


def results(value):
    (index,) = HEADER["model-index"]
    (result,) = index["results"]
    return [{**index, "results": [{**result, "metrics": [{"type": "recall", "value": value}]}]}]


def test_a_good_card():
    assert check_card(content()) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"license": None}, "no license"),
        ({"pipeline_tag": None}, "no pipeline_tag"),
        ({"tags": []}, "no tags"),
        ({"language": ["zh", "chinese"]}, "language 'chinese'"),
        ({"license": "apache2"}, "license 'apache2' is unknown"),
        ({"license": "other"}, "needs a license_name"),
        ({"license_name": "x"}, "belongs to license: other"),
        ({"pipeline_tag": "image-text-matching"}, "no known task"),  # a task that this package alone registers
        ({"pipeline_tag": "searching"}, "no known task"),
        ({"base_model": "/home/me/model"}, "no name of the Hub"),
        ({"datasets": ["我的 数据"]}, "no name of the Hub"),
        ({"tags": ["a", 3]}, "tags are names"),
        ({"model-index": results("12")}, "no finite number"),
        ({"model-index": results(float("nan"))}, "no finite number"),
        ({"model-index": [{"name": "m"}]}, "model-index"),
        ({"model-index": [{**HEADER["model-index"][0], "surplus": 1}]}, "round trip"),
        ({"body": "```python\nprint(\n```\n"}, "is not Python"),
        ({"body": "# {{ name }}"}, "template marks"),
        ({"body": "![a](missing.png)"}, "missing.png is not there"),
    ],
)
def test_what_is_wrong_is_found(changes, problem, tmp_path):
    problems = check_card(content(**changes), folder=tmp_path)
    assert any(problem in each for each in problems), problems


@pytest.mark.parametrize("text", ["# no header", "---\na: [\n---\n", "---\n- a\n---\n"])
def test_headers_that_cannot_be_read(text):
    assert len(check_card(text)) == 1


def test_load_card_names_the_file(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(content(license="apache2"), encoding="utf-8")
    with pytest.raises(CardError, match=r"README.md: license 'apache2'"):
        load_card(path)
    path.write_text(content(), encoding="utf-8")
    assert load_card(path).data.eval_results[0].metric_value == 12.5


def test_data_set_headers():
    header = {
        "language": "zh",
        "license": "mit",
        "pretty_name": "x",
        "task_categories": ["image-to-text"],
        "size_categories": ["1K<n<10K"],
    }

    def problems(**changes):
        return check_card(f"---\n{yaml.safe_dump({**header, **changes})}---\n", "dataset")

    assert problems() == []
    assert problems(size_categories=["10"]) == ["size category '10' is unknown"]
    assert problems(task_categories=["seeing"]) == ["task category 'seeing' is unknown"]
    assert problems(pretty_name="") == ["the header has no pretty_name"]


def test_code_blocks():
    text = "```bash\na\n```\nx `y`\n```python\nb\n\nc\n```\n```\nd\n```\n"
    assert code_blocks(text) == [("bash", "a\n"), ("python", "b\n\nc\n"), ("", "d\n")]


def test_known_tags_and_licenses():
    assert {"zero-shot-image-classification", "image-text-to-text", "text-to-image"} <= known_pipeline_tags()
    assert "base" not in known_pipeline_tags()
    assert {"unknown", "other", "cc-by-nc-sa-4.0"} <= HUB_LICENSES
    assert all(re.fullmatch(r"[a-z0-9.+-]+", name) for name in HUB_LICENSES)


def test_license_fields():
    assert license_fields(None) == {"license": "unknown"}
    assert license_fields("Apache-2.0") == {"license": "apache-2.0"}
    assert license_fields("Research use only") == {"license": "other", "license_name": "research-use-only"}
    with pytest.raises(ValueError, match="own name"):
        license_fields("other")


def test_data_sources():
    assert DataSource.parse("Zero") == DataSource("Zero", "research use only")
    assert DataSource.parse("Wukong=my own reading").license == "my own reading"
    assert DataSource.parse("我的数据").license is None
    assert DataSource.parse("owner/data = mit") == DataSource("owner/data", "mit")
    assert DataSource.parse("owner/data").hub_id == "owner/data"
    assert DataSource.parse("Zero").hub_id is None
    with pytest.raises(ValueError, match="names no data set"):
        DataSource.parse("=mit")
