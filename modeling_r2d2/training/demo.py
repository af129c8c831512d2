"""The main job on the demo set: pre-train a small R2D2 on emoji pictures and their Chinese names, and show it.

The recipe (tower, sizes, learning rate, augmentation, texts) was chosen with the Samsung pictures held out;
Twitter and Windows are test vendors and were never tuned on.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from ..configuration_r2d2 import R2D2Config
from ..evaluation import RetrievalResult, evaluate_retrieval
from ..pretraining_r2d2 import R2D2ForPreTraining
from ..processing.augmentation import DemoAugmentation
from ..processing.datasets.emoji import TEMPLATES, EmojiPairs
from ..processing.processing_r2d2 import R2D2Processor
from ..processing.tokenization import build_character_tokenizer
from .pretraining import PretrainingSettings, build_trainer, count_parameters, refuse_existing_model

TRAINING_VENDORS = ("apple", "facebook", "google", "joypixels", "samsung")
TEST_VENDORS = ("twitter", "windows")
IMAGE_SIZE = 40
MAX_TEXT_LENGTH = 32


@dataclass
class DemoSettings:
    """What `r2d2 demo` takes; `held_out` vendors replace the test vendors for choosing a recipe.

    candidates: pairs per query that the ranker sees, as in the two-stage search of the paper.
    """

    output: Path = Path("runs/demo")
    steps: int = 1800
    batch_size: int = 150
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    candidates: int = 32
    seed: int = 0
    workers: int = 1
    held_out: tuple[str, ...] = TEST_VENDORS
    overwrite: bool = False


def demo_config(vocab_size: int) -> R2D2Config:
    """A 1.9 M-parameter R2D2: a small ResNet, which learns from scratch where a small ViT does not."""
    width = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256}
    return R2D2Config(
        vision_config={
            "model_type": "resnet",
            "embedding_size": 32,
            "hidden_sizes": [64, 128, 256],
            "depths": [1, 1, 1],
            "layer_type": "basic",
        },
        text_config={
            **width,
            "vocab_size": vocab_size,
            "num_hidden_layers": 1,
            "max_position_embeddings": MAX_TEXT_LENGTH,
        },
        cross_encoder_config={**width, "num_hidden_layers": 2},
        projection_dim=128,
        max_text_length=MAX_TEXT_LENGTH,
    )


def run_demo(settings: DemoSettings, console: Console | None = None) -> dict:
    """Train, evaluate, draw and check; writes to `settings.output`:

    `model.safetensors` and processor, `results.json`, `README.md` (the model card with the measured figures),
    `training_curves.png`, `contact_sheet.png`.

    Returns:
        what `results.json` holds: settings, seconds, and recall@K in percent per held-out vendor.

    Raises:
        FileExistsError: the output folder holds a model already.
        ImportError: the demo set's packages are not installed; says how.
    """
    console = console or Console()
    refuse_existing_model(settings.output, settings.overwrite)
    set_seed(settings.seed)
    vendors = [v for v in (*TRAINING_VENDORS, *TEST_VENDORS) if v not in settings.held_out]
    vendors = [v for v in vendors if v not in TEST_VENDORS]
    pairs = EmojiPairs(vendors, templates=TEMPLATES, calibration="exclude")
    galleries = {vendor: EmojiPairs([vendor]) for vendor in settings.held_out}
    tokenizer = build_character_tokenizer(pairs.all_texts(), max_length=MAX_TEXT_LENGTH)
    processor = R2D2Processor.build(tokenizer, image_size=IMAGE_SIZE, max_length=MAX_TEXT_LENGTH)
    model = R2D2ForPreTraining(demo_config(len(tokenizer)))
    console.print(
        f"[bold]R2D2 demo[/bold]: {len(pairs):,} pictures by {', '.join(vendors)}; held out: "
        f"{', '.join(settings.held_out)}; {count_parameters(model) / 1e6:.2f} M parameters, {settings.steps} steps"
    )
    trainer = build_trainer(
        model,
        processor,
        pairs,
        PretrainingSettings(
            output=settings.output,
            steps=settings.steps,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            augmentation=DemoAugmentation(),
            seed=settings.seed,
            workers=settings.workers,
            log_every=20,
            eval_every=max(settings.steps // 6, 1),
        ),
        eval_pairs=galleries,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    trainer.save_model()
    figures = {name: _evaluate(model, processor, gallery, settings) for name, gallery in galleries.items()}
    results = {
        "settings": {**asdict(settings), "output": settings.output.name},
        "training_seconds": round(seconds, 1),
        "parameters": count_parameters(model),
        "threads": torch.get_num_threads(),
        "data_wait": trainer.mean_data_wait,
        "vendors": {name: result.to_dict() for name, result in figures.items()},
    }
    (settings.output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    _draw(settings, trainer.state.log_history, galleries, figures)
    _write_card(settings, results, vendors)
    _print_table(console, results)
    _load_back(console, settings.output, galleries[settings.held_out[0]])
    return results


def _evaluate(
    model: R2D2ForPreTraining, processor: R2D2Processor, gallery: EmojiPairs, settings: DemoSettings
) -> RetrievalResult:
    """A gallery of one vendor's 300 pictures, one query a concept: its plain name; and the mirror image."""
    images = [gallery.image(index) for index in range(len(gallery))]
    return evaluate_retrieval(model, processor, images, gallery.names(), candidates=settings.candidates, batch_size=100)
