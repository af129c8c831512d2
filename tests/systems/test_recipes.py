"""`--recipe {clip,filip,wukong,brivl,prd2,r2d2}`: all through one trainer, then loaded, evaluated and served."""

import math

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from typer.testing import CliRunner

from modeling_r2d2 import R2D2ForPreTraining, R2D2Processor, WukongModel, WukongProcessor
from modeling_r2d2.cli import app
from modeling_r2d2.distillation import DualQueueSettings
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.training.pretraining import PretrainingSettings, build_trainer
from modeling_r2d2.training.recipes import RECIPES, BriVLRecipe, find_recipe, recipe_for
from modeling_r2d2.training.start import StartingPoint, starting_point
from tests.cli.test_cli import TEXTS, arguments, data  # noqa: F401 (a fixture)
from tests.helpers import tiny_image, tiny_processor
from tests.tiny import tiny_config
from tests.wukong.tiny import tiny_wukong, tiny_wukong_config, tiny_wukong_processor

runner = CliRunner()
#: The system's model, and how its run begins.
SYSTEMS = {
    "clip": ("prd2", "GCPR"),
    "filip": ("filip", "token-wise contrastive loss"),
    "wukong": ("wukong", "token-wise contrastive loss on reduced tokens"),
    "brivl": ("prd2", "dual-queue contrastive loss"),
    "prd2": ("prd2", "TgD"),
    "r2d2": ("r2d2", "GCPR + FGR"),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_by_one_command(data, name):  # noqa: F811
    kind, objectives = SYSTEMS[name]
    is_wukong = kind in ("filip", "wukong")
    (tiny_wukong_config(kind, "resnet") if is_wukong else tiny_config("resnet")).save_pretrained(data / "config")
    options = ["--recipe", name, "--eval-data", str(data / "pairs.jsonl"), "--eval-every", "2", "--no-augment"]
    result = runner.invoke(app, arguments(data, *options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert objectives in " ".join(result.output.split())
    has_teacher = (data / "run" / "checkpoint-4" / "distillation.safetensors").is_file()
    assert has_teacher == (name in ("brivl", "prd2"))

    model, processor = AutoModel.from_pretrained(data / "run"), AutoProcessor.from_pretrained(data / "run")
    assert model.config.model_type == ("wukong" if is_wukong else "r2d2")
    assert model.can_rank == (name == "r2d2")
    images = [Image.open(data / f"{number}.png") for number in range(len(TEXTS))]
    found = evaluate_retrieval(model, processor, images, TEXTS)
    assert 0 <= found.pre_ranking["mean_recall"] <= 100
    for task in ("zero-shot-image-classification", "r2d2-zero-shot-image-classification"):
        classify = pipeline(task, model=str(data / "run"))
        scores = classify(images[0], candidate_labels=TEXTS[:3], hypothesis_template="{}")
        assert sum(entry["score"] for entry in scores) == pytest.approx(1, abs=1e-4)

    resumed = runner.invoke(app, [*arguments(data, *options, "--resume"), "--steps", "6"], catch_exceptions=False)
    assert resumed.exit_code == 0, resumed.output


def pairs(count: int = 8) -> list[dict]:
    return [{"image": tiny_image(i, 32, 32), "text": f"{'一两'[i % 2]}只猫", "image_id": i} for i in range(count)]


@pytest.mark.parametrize("kind", ["clip", "filip", "wukong"])
def test_evaluation_while_training(kind, tmp_path):
    """Texts of unlike lengths in batches of two: recalls are those of the model evaluated afterwards."""
    texts = ["一只猫", "狗", "两条大红鱼在水", "马"]
    held_out = [{"image": tiny_image(i, 40, 30), "text": text, "image_id": i} for i, text in enumerate(texts)]
    settings = PretrainingSettings(
        output=tmp_path,
        distil=False,
        max_steps=2,
        per_device_train_batch_size=2,
        eval_steps=2,
        dataloader_num_workers=0,
        augment=False,
    )
    model, processor = tiny_wukong(kind), tiny_wukong_processor()
    trainer = build_trainer(model, processor, pairs(), settings, held_out)
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    assert math.isfinite(logged["eval_loss"])
    found = evaluate_retrieval(model, processor, [pair["image"] for pair in held_out], texts)
    assert {name: logged[f"eval_{name}"] for name in found.pre_ranking} == pytest.approx(found.pre_ranking)


@pytest.mark.parametrize(
    ("name", "model", "match"),
    [
        ("filip", lambda: tiny_wukong("wukong"), "the recipe compares token by token, the model token by token, with"),
        ("wukong", lambda: tiny_wukong("filip"), "train with the recipe filip"),
        ("filip", lambda: R2D2ForPreTraining(tiny_config(ranker=False)), "the model one vector per picture"),
        ("brivl", lambda: tiny_wukong("wukong"), "train with the recipe wukong"),
        ("brivl", lambda: R2D2ForPreTraining(tiny_config()), "the recipe has no ranking but the model has a ranker"),
        ("r2d2", lambda: tiny_wukong("clip"), "the recipe has ranking but the model has no ranker"),
        ("prd2", lambda: tiny_wukong("clip"), "two-way distillation trains R2D2ForPreTraining"),
    ],
)
def test_a_recipe_that_does_not_fit_the_model(name, model, match):
    with pytest.raises(ValueError, match=match):
        find_recipe(name).check(model())


def test_what_a_model_is_made_for():
    kinds = {kind: recipe_for(tiny_wukong(kind)) for kind in ("clip", "filip", "wukong")}
    assert kinds == {"clip": "clip", "filip": "filip", "wukong": "wukong"}
    assert recipe_for(R2D2ForPreTraining(tiny_config())) == "r2d2"
    assert recipe_for(R2D2ForPreTraining(tiny_config(ranker=False))) == "prd2"
    RECIPES["brivl"].check(tiny_wukong("clip"))
    RECIPES["clip"].check(tiny_wukong("clip"))


def test_brivl_is_adapted_to_the_data():
    recipe = find_recipe("brivl")
    assert recipe.distils
    assert (recipe.momentum, recipe.dual_queue) == (0.99, DualQueueSettings(9600, 0.07))
    assert recipe.adapted(1000).dual_queue.queue_size == 500
    assert recipe.adapted(10**6).dual_queue.queue_size == 9600
    assert recipe.adapted(None).dual_queue.queue_size == 9600
    changed = recipe.adapted(1000, queue_size=64, momentum=0.5)
    assert changed == BriVLRecipe(momentum=0.5, dual_queue=DualQueueSettings(64))
    with pytest.raises(ValueError, match="the recipe brivl is the teacher's queue and nothing else"):
        recipe.adapted(1000, distil=False)


def test_starting_points_of_wukong(tmp_path, data):  # noqa: F811
    class Texts:
        def all_texts(self):
            return TEXTS

    tiny_wukong_config("filip", "resnet").save_pretrained(data / "config")
    model, processor = starting_point(StartingPoint(config=data / "config"), Texts())
    assert isinstance(model, WukongModel)
    assert isinstance(processor, WukongProcessor)
    text = model.config.text_config
    tokenizer = processor.tokenizer
    assert text.vocab_size == len(tokenizer)
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (
        tokenizer.pad_token_id,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    again, _ = starting_point(StartingPoint(model=tmp_path / "model"), Texts())
    assert torch.equal(again.text_projection.weight, model.text_projection.weight)
    plain, its_processor = starting_point(StartingPoint(config=_plain(tmp_path)), Texts(), ranker=False)
    assert isinstance(plain, R2D2ForPreTraining)
    assert type(its_processor) is R2D2Processor
    with pytest.raises(ValueError, match=r"unknown preset 'clip'; there are .*r2d2-vit-b-16.*wukong-vit-b-32-filip"):
        starting_point(StartingPoint(preset="clip"), Texts())


def _plain(folder):
    tiny_config("resnet").save_pretrained(folder / "plain")
    return folder / "plain"


def test_gradient_caching_is_for_r2d2(tmp_path):
    settings = PretrainingSettings(
        output=tmp_path,
        distil=False,
        max_steps=1,
        per_device_train_batch_size=4,
        dataloader_num_workers=0,
        arguments={"grad_cache_chunk": 2},
    )
    settings.augment = False
    with pytest.raises(ValueError, match="grad_cache_chunk is for R2D2ForPreTraining, not WukongModel"):
        build_trainer(tiny_wukong("filip"), tiny_wukong_processor(), pairs(), settings).train()
    settings.recipe = BriVLRecipe(dual_queue=DualQueueSettings(8))
    model = R2D2ForPreTraining(tiny_config(ranker=False))
    with pytest.raises(ValueError, match="the dual queue compares nothing within the batch"):
        build_trainer(model, tiny_processor(), pairs(), settings).train()
