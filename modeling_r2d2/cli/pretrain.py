"""`r2d2 pretrain`: pre-train on a user's own pairs."""

from pathlib import Path
from typing import Annotated

import typer

from ..model.presets_r2d2 import PRESETS, WUKONG_PRESETS
from .options import Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of
from .terminal import Terminal


def pretrain(
    data: Annotated[str, typer.Option(help="JSONL, CSV/TSV, image folder, Parquet, saved data set or tar shards.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    model: Annotated[
        Path | None, typer.Option(help="Start from this R2D2 or Wukong model or checkpoint folder.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help=f"Or from random weights: {', '.join([*PRESETS, *WUKONG_PRESETS])}.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Or from random weights of this config.json.")] = None,
    clip: Annotated[str | None, typer.Option(help="Or warm: image tower from this CLIP folder or Hub name …")] = None,
    roberta: Annotated[str | None, typer.Option(help="… and text tower from this BERT/RoBERTa folder or name.")] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer folder or vocab.txt; default: with the model, or characters of the texts."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="With --clip: side of the pictures; default: the tower's own.")
    ] = None,
    vision_pooling: Annotated[
        str | None, typer.Option(help="With --clip, where its kind does not tell: pre-ranking reads 'cls' or 'mean'.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Objectives: r2d2, prd2 (no ranker), clip (no distillation), brivl (a queue of momentum features, no "
            "ranker); on a Wukong clip, filip, wukong or brivl. Default: what the model is made for."
        ),
    ] = None,
    distil: Annotated[bool, typer.Option(help="The recipe's two-way distillation.")] = True,
    queue_size: Annotated[
        int | None,
        typer.Option(
            help="Earlier pairs in the feature queue. Default: 65,536 (brivl 9,600), at most half of the data."
        ),
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the teacher in the targets. Default: 0.4.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of the momentum teacher. Default: 0.995, brivl 0.99.")] = None,
    grad_cache_chunk: Annotated[
        int, typer.Option(help="Pairs in memory at once while the whole batch is compared; 0: all.")
    ] = 0,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    format: Annotated[str | None, typer.Option(help="Of the data, where the suffix does not tell.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder.")] = None,
    eval_data: Annotated[str | None, typer.Option(help="Held-out pairs, for recall@K while training.")] = None,
    eval_format: Annotated[str | None, typer.Option(help="Of the held-out pairs; default: that of --data.")] = None,
    eval_split: Annotated[str | None, typer.Option(help="Which split the held-out pairs are.")] = None,
    on_error: Annotated[str, typer.Option(help="Bad records: 'skip' (reported) or 'refuse'.")] = "skip",
    max_error_rate: Annotated[float, typer.Option(help="Refuse when more than this share is bad.")] = 0.01,
    background: Annotated[str | None, typer.Option(help="Composite transparent pictures on this colour.")] = None,
    exif_transpose: Annotated[
        bool | None,
        typer.Option(
            help="Photographs upright by their EXIF data, or as they are stored (the authors' way); the model keeps "
            "which. Default: as --model says, else upright."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=2, help="Per worker.")] = 64,
    gradient_accumulation: Annotated[int, typer.Option(min=1)] = 1,
    learning_rate: float = 1e-4,
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.05,
    weight_decay: float = 0.05,
    mask_ratio: Annotated[
        float | None, typer.Option(help="Share of text tokens to mask; 0: no MLM. Default: 0.15.")
    ] = None,
    whole_words: Annotated[bool, typer.Option(help="Mask whole Chinese words (needs jieba).")] = False,
    augment: Annotated[bool, typer.Option(help="The paper's augmentation of pictures.")] = True,
    workers: int = 2,
    log_every: int = 10,
    eval_every: int = 500,
    save_every: int = 500,
    seed: int = 0,
    bf16: bool = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Pre-train R2D2 (or PRD2, or a system beside it) on image-text pairs."""
    from transformers import set_seed

    from ..integrations.warm_preprocessing import describe_images
    from ..jobs.outputs import refuse_existing_model
    from ..jobs.progress import evaluation_line
    from ..jobs.record import RecordCallback, RunRecord, TrainingData, describe_start
    from ..processing.augmentation import R2D2Augmentation
    from ..processing.collation import tower_size
    from ..processing.datasets import load_pairs
    from ..processing.files.images import turns_upright
    from ..training.pretraining import PretrainingSettings, count_parameters
    from ..training.pretraining import pretrain as run
    from ..training.recipes import find_recipe, recipe_for
    from ..training.start import StartingPoint, starting_point

    console = Terminal()
    if eval_data is None and (eval_format or eval_split):
        raise ValueError("--eval-format and --eval-split are of the held-out pairs: name them with --eval-data")
    refuse_existing_model(output, overwrite, resume)
    reading = {
        "image_root": image_root,
        "columns": columns_of(image_column, text_column),
        "encoding": encoding,
        "on_error": on_error,
        "max_error_rate": max_error_rate,
        "background": background,
    }
    pairs = load_pairs(data, format=format, split=split, **reading)
    held_out = None
    if eval_data is not None:
        held_out = load_pairs(eval_data, format=eval_format or format, split=eval_split, **reading)
    set_seed(seed)
    start = StartingPoint(model, preset, config, clip, roberta, tokenizer, image_size, vision_pooling)
    network, processor = starting_point(start, pairs, ranker=None if recipe is None else find_recipe(recipe).ranker)
    if exif_transpose not in (None, turns_upright(processor)):
        processor.image_processor.exif_transpose = exif_transpose
    objectives = find_recipe(recipe or recipe_for(network))
    objectives = objectives.adapted(
        len(pairs) if hasattr(pairs, "__len__") else None,
        distil=distil,
        masking=mask_ratio != 0,
        queue_size=queue_size,
        alpha=alpha,
        alpha_ramp_steps=None if hasattr(pairs, "__len__") else steps,
        momentum=momentum,
    )
    if not objectives.reads_masked_texts and (whole_words or mask_ratio):
        raise ValueError(f"--mask-ratio and --whole-words are of masked texts, which {objectives} does not read")
    (_, size), _ = tower_size(processor)
    settings = PretrainingSettings(
        output=output,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation=gradient_accumulation,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        recipe=objectives,
        augmentation=R2D2Augmentation(size=size) if augment else None,
        mask_ratio=0.15 if mask_ratio is None else mask_ratio,
        whole_words=whole_words,
        seed=seed,
        workers=workers,
        log_every=log_every,
        eval_every=eval_every,
        save_every=save_every,
        resume=resume,
        overwrite=overwrite,
        arguments={"bf16": bf16, "grad_cache_chunk": grad_cache_chunk},
    )
    amount = f"{len(pairs):,} pairs" if hasattr(pairs, "__len__") else f"a stream of {pairs.num_shards} shards"
    if clip is not None:
        line = describe_images(processor, network.config.vision_config)
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{amount}, {count_parameters(network) / 1e6:.1f} M parameters, {steps} steps of {objectives} → {output}"
    )
    record = RunRecord([TrainingData.of(data, pairs, split)], *describe_start(start), objectives=str(objectives))
    trainer = run(network, processor, pairs, settings, held_out, [RecordCallback(record, pairs, resume)])
    if message := pairs.report.tell():  # what turned out bad while training
        console.print(message)
    if held_out is not None:
        done, history = trainer.state.global_step, trainer.state.log_history
        found = next((logs for logs in history if logs["step"] == done and evaluation_line(logs)), None)
        if found is None:  # the last step has not been evaluated yet
            found = trainer.evaluate()
            trainer.save_state()
        console.print(f"held out: {evaluation_line(found)}")
    console.print(f"model and processor are in {output}")
