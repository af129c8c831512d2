"""Cards: what they state, and that their header survives a round trip."""

import pytest
from huggingface_hub import ModelCard

from modeling_r2d2.hub_cards import demo_card

FIGURES = {
    "Twitter": {"text→image R@1, pre-ranking": 52.123, "mean recall": 70.0},
    "Windows (hard)": {"text→image R@1, pre-ranking": 17.0},
}


@pytest.fixture
def card(tmp_path):
    demo_card(
        model_name="r2d2-demo",
        figures=FIGURES,
        training={"steps": 1800, "batch size": 150},
        split={"training": "Apple, Google", "test": "Twitter, Windows"},
        chance=1 / 3,
        parameters=1_900_000,
        limits=["One more limit."],
        images=[("Training curves", "training_curves.png")],
    ).save(tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


def test_header(card):
    data = card.data
    assert (data.language, data.library_name, data.license) == ("zh", "transformers", "other")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.model_name == "r2d2-demo"
    results = {(result.dataset_config, result.metric_type): result.metric_value for result in data.eval_results}
    assert results == {
        ("twitter", "recall_at_1"): 52.12,
        ("twitter", "mean_recall"): 70.0,
        ("windows-hard", "recall_at_1"): 17.0,
    }


def test_text(card):
    for text in (
        "| | Twitter | Windows (hard) |",
        "| text→image R@1, pre-ranking | 52.1 | 17.0 |",
        "| mean recall | 70.0 | – |",
        "guessing: R@1 0.3 %",
        "| steps | 1800 |",
        "| training | Apple, Google |",
        "| parameters | 1,900,000 |",
        "- One more limit.",
        "![Training curves](training_curves.png)",
        "not the authors' weights",
        "not redistributed",
    ):
        assert text in card.text, text


def test_card_without_figures():
    for figures in ({}, {"Twitter": {}}):
        with pytest.raises(ValueError, match="states what was measured"):
            demo_card(model_name="x", figures=figures, training={}, split={})
