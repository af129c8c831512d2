"""Every numeric setting refuses what is out of its range, NaN and infinity too, by its name."""

from functools import partial

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError

from modeling_r2d2 import R2D2Config, R2D2TrainingArguments, TwoWayDistillationCallback, WukongConfig
from modeling_r2d2.cli import app
from modeling_r2d2.distillation import DualQueueSettings, FeatureGuidedSettings, Schedule, TargetGuidedSettings
from modeling_r2d2.finetuning import FinetuningSettings, LoRASettings
from modeling_r2d2.inference.calibration import threshold_for
from modeling_r2d2.model.configuration_r2d2 import R2D2CrossEncoderConfig
from modeling_r2d2.text_to_image import TextToImageSettings
from modeling_r2d2.training.recipes import RECIPES, Recipe
from modeling_r2d2.training.settings import PretrainingSettings
from tests.cli.test_cli import arguments, data, runner  # noqa: F401
from tests.tiny import tiny_config

NAN, INF = float("nan"), float("inf")
KINDS = {
    "pretrain": partial(PretrainingSettings, output="out"),
    "finetune": partial(FinetuningSettings, output="out"),
    "text-to-image": partial(TextToImageSettings, output="out"),
    "arguments": partial(R2D2TrainingArguments, "out", use_cpu=True),
    "recipe": Recipe,
    "callback": TwoWayDistillationCallback,
    "schedule": partial(Schedule, 0.1, 0.9),
    "target": TargetGuidedSettings,
    "feature": FeatureGuidedSettings,
    "queue": DualQueueSettings,
    "lora": LoRASettings,
    "config": tiny_config,
    "cross": R2D2CrossEncoderConfig,
    "wukong": WukongConfig,
}
WRONG = {
    "pretrain": {
        "learning_rate": (0, -1e-3, NAN, INF),
        "weight_decay": (-1, NAN),
        "warmup_steps": (-0.1, NAN),
        "max_grad_norm": (-1, INF),
        "mask_ratio": (-0.1, 1.5, NAN),
        "rank_from": (-0.1, 1, NAN),
        "negative_ramp": (-0.1, 1, NAN),
        "max_steps": (0, -5, 2.5),
        "per_device_train_batch_size": (0,),
        "gradient_accumulation_steps": (0,),
        "dataloader_num_workers": (-1,),
        "save_steps": (-1,),
        "seed": (-1, 2**32),
    },
    "finetune": {
        "learning_rate": (0, NAN),
        "warmup_steps": (-1, NAN),
        "warmup_rate": (NAN,),
        "max_grad_norm": (-1,),
        "num_train_epochs": (-1, 0),
        "logging_steps": (-1,),
        "gradient_accumulation_steps": (0,),
    },
    "text-to-image": {
        "learning_rate": (NAN, 0),
        "ema_decay": (2, NAN),
        "max_minutes": (-1, NAN),
        "guidance_scale": (NAN,),
        "weight_decay": (INF,),
        "min_snr_gamma": (NAN, -1),
    },
    "arguments": {
        "learning_rate": (NAN, -1),
        "adam_beta1": (1, NAN),
        "warmup_steps": (-1, NAN),
        "num_train_epochs": (NAN, 0),
        "grad_cache_chunk": (-1,),
        "per_device_train_batch_size": (0,),
    },
    "recipe": {"momentum": (2, NAN, Schedule(0.9, 1.5)), "rank_from": (-0.1, 1), "negative_ramp": (1, NAN)},
    "callback": {"momentum": (2, -0.1, NAN)},
    "schedule": {"steps": (-1,), "begin": (-1,)},
    "target": {
        "alpha": (2, NAN),
        "reliability_decay": (NAN, 2),
        "queue_size": (0.5,),
        "alpha_ramp": ((-0.1, 1), (0.5, 0.2), (0.1, NAN)),
    },
    "feature": {"student_temperature": (NAN, INF), "image_drop": (NAN, 1), "center_momentum": (2,), "block": (0,)},
    "queue": {"temperature": (NAN, INF), "queue_size": (0,)},
    "lora": {"rank": (0,), "alpha": (NAN,), "dropout": (1, NAN)},
    "config": {
        "temperature_init_value": (NAN, 0.0),
        "temperature_max": (INF, NAN),
        "gcpr_weight": (NAN, -1.0),
        "fgd_prototypes": (1, -1),
        "fgd_bottleneck_size": (0,),
        "max_text_length": (0,),
        "initializer_range": (NAN,),
    },
    "cross": {"hidden_dropout_prob": (NAN, 1.5), "layer_norm_eps": (NAN,), "num_attention_heads": (0,)},
    "wukong": {"temperature_min": (NAN,), "projection_dim": (0,), "similarity_chunk_size": (0,)},
}


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [(kind, name, value) for kind, fields in WRONG.items() for name, values in fields.items() for value in values],
)
def test_out_of_range(kind, name, value):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=rf"{name} (is|\()"):
        KINDS[kind](**{name: value})


def test_what_is_given_by_default_is_within():
    for kind in KINDS.values():
        kind()
    assert RECIPES["brivl"].momentum == 0.99
    assert R2D2Config.from_preset("prd2-vit-b-16").temperature_init_value == 0.07


@pytest.mark.parametrize("wanted", [{"precision": NAN}, {"recall": 1.5}, {"precision": 0}])
def test_wanted_shares(wanted):
    with pytest.raises(ValueError, match=rf"{next(iter(wanted))} is"):
        threshold_for([0.1, 0.9], [0, 1], **wanted)


def test_rates_of_parts():
    with pytest.raises(ValueError, match="the rate of text_model is nan"):
        FinetuningSettings(output="out", rates={"text_model": NAN})


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--momentum", "2", "momentum"),
        ("--alpha", "nan", "alpha"),
        ("--learning-rate", "nan", "learning_rate"),
        ("--learning-rate", "-1", "learning_rate"),
        ("--weight-decay", "inf", "weight_decay"),
        ("--warmup", "-1", "warmup_steps"),
        ("--mask-ratio", "-0.5", "mask_ratio"),
        ("--grad-cache-chunk", "-1", "grad_cache_chunk"),
        ("--workers", "-1", "dataloader_num_workers"),
        ("--max-error-rate", "nan", "max_error_rate"),
    ],
)
def test_on_the_command_line(data, option, value, name):  # noqa: F811
    result = runner.invoke(app, arguments(data, "--distil", option, value))
    assert result.exit_code != 0
    assert isinstance(result.exception, ValueError), result.output
    assert f"{name} is " in str(result.exception)
    assert not (data / "run").exists()
