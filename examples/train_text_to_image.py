"""Train a text-to-image model on R2D2's Chinese text encoder.

The demo: 300 emoji from their Chinese names, 15 minutes of training on two CPU cores, then judged by another R2D2:

    python examples/train_text_to_image.py --demo --r2d2 runs/demo --judge runs/demo_1 --output runs/text_to_image

Your own pairs, from scratch (a UNet configuration of diffusers) or on a Stable-Diffusion-shaped checkpoint, whose
text projection and cross-attention train first, then everything:

    python examples/train_text_to_image.py --data pairs.jsonl --r2d2 R2D2 --unet-config unet.json --output runs/mine
    python examples/train_text_to_image.py --data pairs.jsonl --r2d2 R2D2 --pretrained SD --output runs/adapted
    python examples/train_text_to_image.py --data pairs.jsonl --pretrained runs/adapted --train all --output runs/all

Several processes: `accelerate launch examples/train_text_to_image.py …`. Every setting of `TextToImageSettings` is
an option; an interrupted run goes on exactly with `--resume`.
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import typer
from diffusers import UNet2DConditionModel
from transformers import AutoProcessor

from modeling_r2d2 import R2D2Model, R2D2TextToImagePipeline
from modeling_r2d2.cli import errors
from modeling_r2d2.cli.commands import add_verb
from modeling_r2d2.cli.options import Tables, Trusting
from modeling_r2d2.inference.loading import load_part, load_processor, load_whole
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.files.settings import setting
from modeling_r2d2.text_to_image.components import adapt_pretrained, is_own_pipeline, plain_text_encoder
from modeling_r2d2.text_to_image.demo import DemoSettings, demo_scheduler, demo_settings, run_demo
from modeling_r2d2.text_to_image.settings import TextToImageSettings
from modeling_r2d2.text_to_image.training import train_text_to_image


@dataclass(kw_only=True)
class Training(TextToImageSettings, Tables, Trusting):
    """What this script takes."""

    panel: ClassVar[str] = "Data"
    #: The demo's recipe, and what training begins with, say otherwise.
    unset: ClassVar[set[str]] = {each.name for each in fields(TextToImageSettings) if each.name != "output"}
    given: ClassVar[dict[str, Any]]

    demo: bool = setting(False, "Train by the emoji recipe. Settings that are given replace its own.")
    r2d2: Path | None = setting(None, "The R2D2 folder whose text encoder reads prompts. Of the demo it is runs/demo.")
    judge: Path | None = setting(None, "With --demo, the folder of an R2D2 of another seed, which judges.")
    judged_seeds: int = setting(2, "With --demo, the pictures of each name that are judged.")
    data: str | None = setting(None, "The pairs, as load_pairs reads them.")
    background: str | None = setting(None, "The color that transparent pictures are put on.")
    streaming: bool = setting(False, "Read the data while training.")
    pretrained: str | None = setting(None, "A Stable-Diffusion-shaped checkpoint, or a pipeline trained here.")
    unet_config: Path | None = setting(None, "From random weights: the config.json of a UNet2DConditionModel.")
    threads: int | None = setting(None, "The number of torch's threads.")

    @classmethod
    def from_options(cls, **options: Any) -> "Training":
        """With what was given noted in `given`."""
        chosen = {name: value for name, value in options.items() if value is not None}
        made = cls(**chosen)
        made.given = {name: chosen[name] for name in (*cls.unset, "output") if name in chosen}
        return made


def starting_pipeline(options: Training) -> tuple[R2D2TextToImagePipeline, str]:
    """What training begins with, and which part of the UNet trains by default."""
    if (options.pretrained is None) == (options.unet_config is None):
        raise ValueError("name where to start: --pretrained, or --unet-config for random weights")
    if options.pretrained is not None and is_own_pipeline(options.pretrained):
        return load_part(R2D2TextToImagePipeline, options.pretrained), "all"
    if options.r2d2 is None:
        raise ValueError("--r2d2 is missing: the R2D2 folder whose text encoder reads the prompts")
    encoder = plain_text_encoder(load_whole(R2D2Model, options.r2d2))
    tokenizer = load_processor(AutoProcessor, options.r2d2).tokenizer
    if options.pretrained is not None:
        return adapt_pretrained(options.pretrained, encoder, tokenizer), "cross_attention"
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(options.unet_config))
    return R2D2TextToImagePipeline(encoder, tokenizer, unet, demo_scheduler()), "all"


def run(options: Training) -> None:
    """Train, from the demo's data or from your own."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.demo:
        r2d2 = options.r2d2 or Path("runs/demo")
        run_demo(DemoSettings(demo_settings(**options.given), r2d2, options.judge, options.judged_seeds))
        return
    if options.data is None:
        raise ValueError("--data is missing: which pairs to train on (or --demo)")
    torch.manual_seed(options.seed)
    pipeline, train = starting_pipeline(options)
    settings = TextToImageSettings(**{"train": train, **options.given})
    pairs = load_pairs(options.data, streaming=options.streaming, **options.reading())
    train_text_to_image(pipeline, pairs, settings)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
add_verb(app, "train_text_to_image", run, "train_text_to_image.py --demo --output runs/text_to_image")


def main(argv: list[str] | None = None) -> None:
    """Run what the options say."""
    app(argv, standalone_mode=False)


if __name__ == "__main__":
    sys.exit(errors.run(main, lambda: False))
