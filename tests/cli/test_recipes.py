"""`r2d2 pretrain --recipe`, the recipes, and the example of the stock Trainer."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForPreTraining
from typer.testing import CliRunner

from modeling_r2d2.cli import app
from modeling_r2d2.distillation import FeatureGuidedSettings
from modeling_r2d2.training.recipes import RECIPES, Recipe, find_recipe
from tests.cli.test_cli import arguments, data  # noqa: F401 (a fixture)

runner = CliRunner()
ROOT = Path(__file__).parents[2]


def test_recipes_of_the_command_line():
    assert {name: str(recipe) for name, recipe in RECIPES.items()} == {
        "r2d2": "GCPR + FGR",
        "ranker": "FGR on frozen towers, with negatives of the whole set",
        "prd2": "TgD",
        "clip": "GCPR",
        "filip": "token-wise contrastive loss",
        "wukong": "token-wise contrastive loss on reduced tokens",
        "brivl": "dual-queue contrastive loss",
    }
    with pytest.raises(ValueError, match="unknown recipe 'albef'; there are r2d2, ranker, prd2, clip"):
        find_recipe("albef")
    with pytest.raises(ValueError, match="needs masking"):
        Recipe(masking=False, feature_guided=FeatureGuidedSettings())


@pytest.mark.parametrize(
    "options", [("--recipe", "clip", "--mask-ratio", "0.3"), ("--mask-ratio", "0", "--whole-words")]
)
def test_masking_that_nothing_reads_is_refused(data, options):  # noqa: F811
    assert "of masked texts, which" in str(runner.invoke(app, arguments(data, *options)).exception)


def test_recipes_are_adapted_to_options():
    recipe = find_recipe("r2d2")
    assert not recipe.adapted(1000).distils
    assert recipe.adapted(1000, distil=True).target_guided.queue_size is None  # by the size of the data
    assert recipe.adapted(1000, distil=True, queue_size=800).target_guided.queue_size == 800
    both = recipe.adapted(1000, distil=True, masking=True, feature_guided=True)
    assert both.feature_guided == FeatureGuidedSettings()
    assert find_recipe("prd2").adapted(1000).distils
    assert not find_recipe("prd2").adapted(1000, distil=False).distils
    own = replace(recipe, masking=True, feature_guided=FeatureGuidedSettings(block=8))
    assert own.adapted(1000, feature_guided=True).feature_guided.block == 8
    assert own.adapted(1000, masking=False).feature_guided is None


@pytest.mark.parametrize(
    ("options", "objectives", "ranks"),
    [
        ((), "GCPR + FGR", True),
        (("--mask-ratio", "0.15"), "GCPR + FGR + MLM", True),
        (("--distil", "--mask-ratio", "0.15"), "TgD + FGR + MLM", True),
        (("--distil", "--mask-ratio", "0.15", "--feature-guided"), "TgD + FGR + MLM + FgD", True),
        (("--recipe", "prd2", "--feature-guided"), "TgD + FgD", False),
        (("--recipe", "prd2"), "TgD", False),
        (("--recipe", "clip"), "GCPR", False),
    ],
)
def test_pretrain_by_recipe(data, options, objectives, ranks):  # noqa: F811
    result = runner.invoke(app, arguments(data, *options), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert objectives in " ".join(result.output.split())
    assert ("FgD" in result.output) == ("--feature-guided" in options)
    assert AutoModelForPreTraining.from_pretrained(data / "run").can_rank == ranks
    state = data / "run" / "checkpoint-2" / "distillation.safetensors"
    assert state.is_file() == ("TgD" in objectives)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "clip", "--queue-size", "8"), "belong to target-guided distillation"),
        (("--alpha", "0.5"), "belong to target-guided distillation"),
        (("--momentum", "0.9"), "belongs to a teacher"),
        (("--recipe", "brivl", "--alpha", "0.5"), "the recipe brivl has none"),
        (("--recipe", "brivl", "--feature-guided"), "brivl has one objective"),
        (("--recipe", "clip", "--feature-guided"), "needs a teacher and masked texts"),
        (("--feature-guided",), "needs a teacher and masked texts"),
        (("--recipe", "prd2", "--no-distil", "--feature-guided"), "needs a teacher and masked texts"),
        (("--recipe", "clip", "--distil"), "nothing is distilled while training by GCPR"),
        (("--distil", "--mask-ratio", "0", "--feature-guided"), "needs a teacher and masked texts"),
        (("--tokenizer", "run", "--model", "run"), "comes with its tokenizer"),
    ],
)
def test_options_that_would_do_nothing_are_refused(data, options, message):  # noqa: F811
    line = arguments(data, *options)
    if "--model" in options:
        place = line.index("--config")
        line = line[:place] + line[place + 2 :]
    result = runner.invoke(app, line)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_a_model_without_ranker_gets_one_where_the_recipe_ranks(data):  # noqa: F811
    assert runner.invoke(app, arguments(data, "--recipe", "prd2")).exit_code == 0
    other = ["pretrain", "--data", str(data / "pairs.jsonl"), "--model", str(data / "run"), "--steps", "1"]
    ranking = [*other, "--recipe", "r2d2", "--output", str(data / "other"), "--batch-size", "4", "--workers", "0"]
    result = runner.invoke(app, [*ranking, "--ranker-layers", "1"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert AutoModelForPreTraining.from_pretrained(data / "other").config.cross_encoder_config.num_hidden_layers == 1
    other[other.index("--model") + 1] = str(data / "other")
    result = runner.invoke(app, [*other, "--recipe", "prd2", "--output", str(data / "third")])
    assert "the recipe has no ranking but the model has a ranker" in str(result.exception)


def test_distilled_run_resumes(data):  # noqa: F811
    assert runner.invoke(app, arguments(data)).exit_code == 0
    resumed = runner.invoke(app, [*arguments(data, "--resume"), "--steps", "6"], catch_exceptions=False)
    assert resumed.exit_code == 0, resumed.output


def test_example_of_the_stock_trainer(data, tmp_path):  # noqa: F811
    script = ROOT / "examples" / "distil_with_trainer.py"
    code = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(('"""', "import", "from"))
    ]
    assert len(code) <= 25
    command = [sys.executable, str(script), str(data / "pairs.jsonl"), str(tmp_path / "out"), "10"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "'loss_tgd'" in done.stdout
    assert "'loss_fgd'" in done.stdout
    assert AutoModelForPreTraining.from_pretrained(tmp_path / "out").can_rank


def test_two_workers_by_torchrun(data):  # noqa: F811
    """The command as the launch examples start it, on two CPU processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "modeling_r2d2.cli", *arguments(data, "--batch-size", "2", "--no-augment")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "rank0" in line][-15:]
    assert (data / "run" / "checkpoint-4" / "complete.json").is_file()
    assert (data / "run" / "checkpoint-4" / "rng_state_1.pth").is_file()
    assert AutoModelForPreTraining.from_pretrained(data / "run").can_rank
