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

import argparse
import sys
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import AutoProcessor

from modeling_r2d2 import R2D2Model, R2D2TextToImagePipeline
from modeling_r2d2.inference.loading import load_part, load_processor, load_whole, trusting_remote_code
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.text_to_image.components import adapt_pretrained, is_own_pipeline, plain_text_encoder
from modeling_r2d2.text_to_image.demo import DemoSettings, demo_scheduler, demo_settings, run_demo
from modeling_r2d2.text_to_image.settings import TextToImageSettings
from modeling_r2d2.text_to_image.training import train_text_to_image


def arguments() -> argparse.ArgumentParser:
    """Options of this script, and one for every field of `TextToImageSettings`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="the emoji recipe; settings named here replace its own")
    parser.add_argument("--r2d2", type=Path, help="R2D2 folder whose text encoder reads prompts (demo: runs/demo)")
    parser.add_argument("--judge", type=Path, help="demo: folder of an R2D2 of another seed, which judges")
    parser.add_argument("--judged-seeds", type=int, default=2, help="demo: pictures per name that are judged")
    parser.add_argument("--data", help="pairs, as load_pairs reads them")
    parser.add_argument("--format", help="of the data, where the suffix does not tell")
    parser.add_argument("--image-root", type=Path, help="relative picture paths begin here")
    parser.add_argument("--background", help="composite transparent pictures on this colour")
    parser.add_argument("--streaming", action="store_true", help="read the data while training")
    parser.add_argument("--pretrained", help="a Stable-Diffusion-shaped checkpoint, or a pipeline trained here")
    parser.add_argument("--unet-config", type=Path, help="from scratch: config.json of a UNet2DConditionModel")
    parser.add_argument("--threads", type=int, help="torch threads")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that what is loaded brings")
    settings = parser.add_argument_group("settings")
    hints = typing.get_type_hints(TextToImageSettings)
    for field in fields(TextToImageSettings):
        name, kind = f"--{field.name.replace('_', '-')}", hints[field.name]
        required = field.default is MISSING and field.default_factory is MISSING
        options = {"default": argparse.SUPPRESS, "required": required}
        if kind is bool:
            settings.add_argument(name, action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(kind) is typing.Literal:
            settings.add_argument(name, choices=typing.get_args(kind), **options)
        elif typing.get_origin(kind) is tuple:
            settings.add_argument(name, nargs="+", **options)
        elif typing.get_origin(kind) is types.UnionType:
            settings.add_argument(name, type=_number_or_none, metavar="NUMBER|none", **options)
        else:
            settings.add_argument(name, type=kind, **options)
    return parser


def _number_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def given_settings(options: argparse.Namespace) -> dict:
    """The settings that stand on the command line."""
    names = {field.name for field in fields(TextToImageSettings)}
    given = {name: value for name, value in vars(options).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def starting_pipeline(options: argparse.Namespace) -> tuple[R2D2TextToImagePipeline, str]:
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


def main(argv: list[str] | None = None) -> None:
    """Run what the options say."""
    options = arguments().parse_args(argv)
    with trusting_remote_code(options.trust_remote_code):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Train, from the demo's data or from the user's."""
    given = given_settings(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.demo:
        training = demo_settings(**given)
        r2d2 = options.r2d2 or Path("runs/demo")
        run_demo(DemoSettings(training, r2d2, options.judge, options.judged_seeds))
        return
    if options.data is None:
        raise ValueError("--data is missing: which pairs to train on (or --demo)")
    torch.manual_seed(given.get("seed", 0))
    pipeline, train = starting_pipeline(options)
    settings = TextToImageSettings(**{"train": train, **given})
    reading = {"format": options.format, "image_root": options.image_root, "background": options.background}
    pairs = load_pairs(options.data, streaming=options.streaming, **reading)
    train_text_to_image(pipeline, pairs, settings)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileExistsError, ImportError, OSError) as error:
        sys.exit(f"train_text_to_image: {error}")
