"""`r2d2 pretrain --model` on aligned towers: any recipe goes on from a dual encoder of transformers, as a folder of its
own kind or converted."""

import pytest
import torch
from transformers import AutoModelForPreTraining
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Model
from modeling_r2d2.cli import app
from modeling_r2d2.inference.loading import load_whole
from modeling_r2d2.integrations.dual_encoder import convert_dual_encoder_to_folder
from modeling_r2d2.training.settings import StartingPoint
from modeling_r2d2.training.start import starting_point
from tests.cli.test_cli import data  # noqa: F401 (a fixture)
from tests.integrations.conversion.dual_encoder_sources import KINDS, save

runner = CliRunner()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    return {kind: save(root / kind, kind) for kind in KINDS}


def arguments(data, model, *more: str) -> list[str]:  # noqa: F811
    return [
        "pretrain",
        *("--data", str(data / "pairs.jsonl"), "--model", str(model), "--output", str(data / "run")),
        *("--steps", "2", "--batch-size", "4", "--workers", "0", "--save-every", "0", "--no-augment", *more),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_towers_are_taken_and_get_a_ranker(sources, kind):
    start = StartingPoint(model=sources[kind], ranker_layers=2)
    model, processor = starting_point(start, None, ranker=True)
    towers = load_whole(R2D2Model, sources[kind]).state_dict()
    found = model.state_dict()
    assert towers.keys() < found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in towers.items())
    cross = model.config.cross_encoder_config
    assert (cross.num_hidden_layers, cross.hidden_size) == (2, model.config.text_hidden_size)
    spread = float(model.text_image_encoder.layers[1].fc1.weight.detach().std())
    assert spread == pytest.approx(0.02 * (768 / cross.hidden_size) ** 0.5, rel=0.1)  # BERT's, for its width
    assert model.config.two_stage_score == "fused"
    assert model.config.max_text_length == processor.tokenizer.model_max_length


@pytest.mark.parametrize(
    ("kind", "recipe", "objectives"),
    [
        *((kind, "r2d2", "GCPR + FGR") for kind in KINDS),
        ("chinese_clip", "prd2", "TgD"),
        ("chinese_clip", "clip", "GCPR"),
        ("siglip", "clip", "GCPR"),
        ("altclip", "brivl", "dual-queue contrastive loss"),
    ],
)
def test_every_recipe_goes_on_from_them(sources, data, kind, recipe, objectives):  # noqa: F811
    model = data / "converted"
    convert_dual_encoder_to_folder(sources[kind], model)
    more = ("--ranker-layers", "1") if recipe == "r2d2" else ()
    result = runner.invoke(app, arguments(data, model, "--recipe", recipe, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"steps of {objectives} →" in " ".join(result.output.split())
    trained = AutoModelForPreTraining.from_pretrained(data / "run")
    assert trained.can_rank == (recipe == "r2d2")
    before, after = load_whole(R2D2Model, model).state_dict(), trained.state_dict()
    del before["temperature"]  # brivl sets its own
    assert any(not torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.allclose(after[name], tensor, atol=0.02) for name, tensor in before.items())


def test_what_does_not_fit_is_refused(sources, data):  # noqa: F811
    def refusal(*options: str) -> str:
        return str(runner.invoke(app, arguments(data, sources["clip"], *options)).exception)

    assert "no mask token" in refusal("--recipe", "r2d2", "--mask-ratio", "0.3")
    assert "gets none from this recipe" in refusal("--ranker-layers", "2")
    assert runner.invoke(app, arguments(data, sources["clip"], "--recipe", "r2d2")).exit_code == 0
    again = arguments(data, data / "run", "--recipe", "r2d2", "--ranker-layers", "2", "--output", str(data / "other"))
    assert "has one" in str(runner.invoke(app, again).exception)
    with pytest.raises(ValueError, match="beside the towers of --model"):
        starting_point(StartingPoint(preset="r2d2-vit-b-16", ranker_layers=2), None, ranker=True)
