"""The demo recipe: emoji from their Chinese names, in pixel space, on two CPU cores in a quarter of an hour.

Only openly licensed drawings (Noto, Twemoji) are trained on: a small model repeats much of what it has seen, and
its sheet can be shown with attribution.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from rich.console import Console

from ..inference.loading import load_processor, load_whole
from ..model.modeling_r2d2 import R2D2Model
from ..model.pipeline_text_to_image import R2D2TextToImagePipeline
from ..model.processing_r2d2 import R2D2Processor
from ..processing.datasets.emoji import OPENLY_LICENSED, EmojiPairs
from ..processing.files.writing import claim_folder, staged_folder
from .components import plain_text_encoder
from .data import CaptionedImages
from .evaluation import evaluate_generated, feature_kid, generate, image_features, nearest_images
from .settings import TextToImageSettings
from .sheet import sample_sheet
from .training import train_text_to_image

#: Spread over animals, food, plants, things, with colours and shapes that differ.
SHEET_PROMPTS = ("红苹果", "西瓜", "草莓", "向日葵", "猫脸", "青蛙", "企鹅", "棒棒糖")
#: Never trained on: two known words in a new combination.
NEW_PROMPTS = ("蓝色苹果", "橙色青蛙", "红色书本", "青西瓜")


@dataclass
class DemoSettings:
    """What the demo takes.

    Args:
        r2d2: folder whose text tower and tokenizer the generator reads.
        judge: folder of another R2D2, of another seed, that judges; None: no judgement.
        seeds: pictures per name that are judged.
        vendors: whose drawings are trained on.
        concepts: which ones.
    """

    training: TextToImageSettings
    r2d2: Path = Path("runs/demo")
    judge: Path | None = None
    seeds: int = 2
    vendors: tuple[str, ...] = tuple(OPENLY_LICENSED)
    concepts: str | list[str] = "demo300"


def demo_settings(output: Path, **changes: Any) -> TextToImageSettings:
    """The recipe of that run; `changes` by name."""
    recipe = TextToImageSettings(
        output=output,
        max_steps=12_000,
        max_minutes=15,
        per_device_train_batch_size=48,
        learning_rate=1e-3,
        warmup=0.01,
        cooldown=0.4,
        ema_decay=0.995,
        resolution=32,
        channels_last=True,
        logging_steps=50,
        save_steps=500,
        sample_every=500,
        sample_prompts=SHEET_PROMPTS,
        guidance_scale=2.0,
    )
    return replace(recipe, **changes)


def demo_unet(text_size: int, resolution: int = 32) -> UNet2DConditionModel:
    """2.9 M parameters: the text's mean state steers every block, its tokens are read at 8 × 8."""
    return UNet2DConditionModel(
        sample_size=resolution,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=text_size,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def demo_scheduler() -> DDIMScheduler:
    """Cosine schedule with velocity prediction; its last step is pure noise, which white backgrounds need."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=True,
        set_alpha_to_one=True,
    )


def demo_pipeline(r2d2: str | Path, resolution: int = 32, seed: int = 0) -> R2D2TextToImagePipeline:
    """An untrained pipeline on the text tower of an R2D2 folder."""
    model, processor = load_whole(R2D2Model, r2d2), load_processor(R2D2Processor, r2d2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = demo_unet(model.config.text_config.hidden_size, resolution)
    return R2D2TextToImagePipeline(
        text_encoder=plain_text_encoder(model), tokenizer=processor.tokenizer, unet=unet, scheduler=demo_scheduler()
    )


def run_demo(settings: DemoSettings, console: Console | None = None) -> dict[str, Any]:
    """Train, judge, draw: `output` gets the pipeline, `results.json`, `sheet.png` and `new_combinations.png`.

    Returns:
        what `results.json` holds.

    Raises:
        ImportError: the demo set's packages are not installed.
        OSError: no R2D2 in the named folder.
        FileExistsError: as `train_text_to_image`, or somebody's files of these names.
    """
    console = console or Console()
    training = settings.training
    written = ("results.json", "sheet.png", "new_combinations.png")
    claim_folder(training.output, needs=written, overwrite=training.overwrite, resume=training.resume)
    pairs = EmojiPairs(settings.vendors, settings.concepts)
    pipeline = demo_pipeline(settings.r2d2, training.resolution, training.seed)
    judge = None if settings.judge is None else _judge(settings.judge, settings.r2d2)
    run = train_text_to_image(pipeline, pairs, training, console)
    names = [concept.name for concept, vendor in pairs.items if vendor == settings.vendors[0]]
    call: dict[str, Any] = {"num_inference_steps": training.sample_steps, "guidance_scale": training.guidance_scale}
    seeds = range(settings.seeds)
    images = generate(pipeline, names, seeds, **call)
    results: dict[str, Any] = {
        "training": {**run, "history": run["history"][-1:]},
        "vendors": list(settings.vendors),
        "call": call,
    }
    results["seeds"] = settings.seeds
    results["nearest"] = _nearest(images, pairs, training.resolution)
    if judge is None:
        console.print("no judge was named (--judge): the pictures are drawn and not judged")
    else:
        results["judged"] = _judged(*judge, images, names, pairs, settings)
    with staged_folder(training.output, "text-to-image demo") as folder:
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        _draw(pipeline, judge, pairs, names, settings, call, results, folder)
    console.print(json.dumps({k: v for k, v in results.items() if k != "training"}, indent=1, ensure_ascii=False))
    return results


def _judge(judge: Path, r2d2: Path) -> tuple[R2D2Model, R2D2Processor]:
    if judge.resolve() == r2d2.resolve():
        raise ValueError(f"{judge} conditions the generator: name an R2D2 of another seed as the judge")
    return load_whole(R2D2Model, judge).eval(), load_processor(R2D2Processor, judge)


def _flat(images: list[list]) -> tuple[list, list[int]]:
    return [image for row in images for image in row], [place for place, row in enumerate(images) for _ in row]


def _nearest(images: list[list], pairs: EmojiPairs, resolution: int) -> dict[str, float]:
    """How far from repeating: distance to the nearest training picture, and how often that is of the same concept."""
    pil_images = CaptionedImages(pairs, resolution)
    known = torch.stack([pil_images.pixels(index) for index in range(len(pil_images))])
    flat, own = _flat(images)
    distance, place = nearest_images(flat, known)
    names, first = pairs.names(), len(images)
    same = [names[p] == names[:first][o] for p, o in zip(place.tolist(), own, strict=True)]
    return {"median_rmse": distance.median().item(), "same_concept_percent": 100 * sum(same) / len(same)}


def _judged(judge, processor, images, names, pairs, settings: DemoSettings) -> dict[str, Any]:
    """Generated pictures, and for comparison the vendors' own, against all names."""
    flat, own = _flat(images)
    result = {"generated": evaluate_generated(judge, processor, flat, own, names).to_dict()}
    features = image_features(judge, processor, flat)
    count, size = len(names), settings.training.resolution
    for number, vendor in enumerate(settings.vendors):
        drawn = [pairs.image(number * count + place).resize((size, size)) for place in range(count)]
        entry = evaluate_generated(judge, processor, drawn, range(count), names).to_dict()
        entry["r2d2_feature_kid_to_generated"] = feature_kid(features, image_features(judge, processor, drawn))
        result[f"drawn by {vendor}"] = entry
    return result


def _draw(
    pipeline: R2D2TextToImagePipeline,
    judge: tuple[R2D2Model, R2D2Processor] | None,
    pairs: EmojiPairs,
    names: list[str],
    settings: DemoSettings,
    call: dict[str, Any],
    results: dict[str, Any],
    folder: Path,
) -> None:
    count = len(names)
    prompts = [name for name in SHEET_PROMPTS if name in names]
    spread = torch.linspace(0, count - 1, 12).round().long().tolist()
    prompts = list(dict.fromkeys([*prompts, *(names[place] for place in spread)]))[:12]
    images = generate(pipeline, prompts, range(5), **call)
    places = [names.index(prompt) for prompt in prompts]
    real = [[pairs.image(number * count + p) for number in range(len(settings.vendors))] for p in places]
    scores = found = subtitle = None
    if judge is not None:
        flat, rows = _flat(images)
        seen = evaluate_generated(*judge, flat, [places[row] for row in rows], names)
        values = seen.probabilities if seen.probabilities is not None else 1 / seen.ranks.double()
        scores, found = values.view(len(prompts), -1).tolist(), (seen.ranks <= 10).view(len(prompts), -1).tolist()
        recall = results["judged"]["generated"]["recall"]
        subtitle = (
            f"another R2D2 finds the name among {count} at R@1 {recall['r1']:.1f} %, R@10 {recall['r10']:.1f} % "
            "(framed: within the first 10; number: match probability)"
        )
    sample_sheet(
        prompts,
        images,
        folder / "sheet.png",
        title="中文生成图片 · pictures from Chinese names",
        subtitle=subtitle,
        scores=scores,
        found=found,
        real=real,
    )
    new = generate(pipeline, NEW_PROMPTS, range(5), **call)
    sample_sheet(NEW_PROMPTS, new, folder / "new_combinations.png", title="新组合 · combinations never seen")
