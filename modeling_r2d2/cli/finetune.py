"""`r2d2 finetune`: fine-tune a model on a user's own pairs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .options import Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of
from .terminal import Terminal

Task = StrEnum("Task", ["retrieval", "matching", "caption", "classification"])


def finetune(
    task: Annotated[Task, typer.Argument(help="What to learn.")],
    model: Annotated[str, typer.Option(help="Folder or Hub name of the R2D2 to begin with.")],
    data: Annotated[
        str,
        typer.Option(
            help="Training pairs, in any format that `pretrain` reads; for classification a folder of classes, too."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and the model.")],
    preset: Annotated[
        str | None,
        typer.Option(help="'published' (the authors' hyper-parameters), 'default', or 'small' for small data."),
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Validation pairs; never the test split.")] = None,
    validation_share: Annotated[
        float, typer.Option(min=0, max=0.5, help="Or: set this share of the training pictures aside.")
    ] = 0.0,
    test: Annotated[list[str] | None, typer.Option(help="Test data, only to refuse them as validation data.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the data, where the suffix does not tell.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder to train on.")] = None,
    validation_split: Annotated[str | None, typer.Option(help="Which split --validation is.")] = None,
    label: Annotated[str | None, typer.Option(help="matching: column of labels (1, 0) in files of your own.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    on_error: Annotated[str, typer.Option(help="Bad records: 'skip' (reported) or 'refuse'.")] = "skip",
    max_error_rate: Annotated[float, typer.Option(help="Refuse when more than this share is bad.")] = 0.01,
    background: Annotated[str | None, typer.Option(help="Composite transparent pictures on this colour.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="This and all below: instead of the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Per worker.")] = None,
    gradient_accumulation: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    schedule: Annotated[str | None, typer.Option(help="'retrieval', 'matching', or one of transformers.")] = None,
    warmup_steps: Annotated[float | None, typer.Option(help="Below 1: a share of all steps.")] = None,
    freeze: Annotated[list[str] | None, typer.Option(help="Parts or name patterns that do not train.")] = None,
    freeze_nothing: Annotated[bool, typer.Option(help="Also train what the preset freezes.")] = False,
    rate: Annotated[list[str] | None, typer.Option(help="Factor on the rate of a part: text_model=0.1")] = None,
    lora: Annotated[int | None, typer.Option(min=0, help="Rank of the adapters; 0: whole weights.")] = None,
    lora_alpha: Annotated[int | None, typer.Option(min=1, help="Default: twice the rank.")] = None,
    dora: Annotated[bool, typer.Option(help="DoRA instead of LoRA.")] = False,
    multi_positive: Annotated[bool | None, typer.Option(help="Pairs of one caption are positives.")] = None,
    augment: Annotated[bool | None, typer.Option(help="The paper's augmentation of pictures.")] = None,
    patience: Annotated[int | None, typer.Option(min=0, help="Evaluations without a better one; 0: train on.")] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="In epochs.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A classifier begins with these: '一张{}的图片'.")] = None,
    workers: int | None = None,
    log_every: int | None = None,
    seed: int = 0,
    bf16: bool = False,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Fine-tune for retrieval, matching, captions or classification."""
    from ..finetuning import FinetuningSettings, split_validation
    from ..finetuning import finetune as run
    from ..finetuning.data import class_names
    from ..finetuning.report import check_splits
    from ..jobs.outputs import refuse_existing_model
    from ..jobs.record import TrainingData
    from ..processing.datasets import load_pairs
    from ..processing.datasets.classes import class_format

    console = Terminal()
    chosen = {
        "epochs": epochs,
        "batch_size": batch_size,
        "gradient_accumulation": gradient_accumulation,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "freeze": () if freeze_nothing else tuple(freeze) if freeze else None,
        "rates": _rates(rate or []) or None,
        "multi_positive": multi_positive,
        "augment": augment,
        "patience": patience,
        "eval_every": eval_every,
        "prompts": tuple(prompt) if prompt else None,
        "workers": workers,
        "log_every": log_every,
    }
    settings = FinetuningSettings.from_preset(
        task.value,
        output,
        preset,
        **chosen,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        arguments={"bf16": bf16} if bf16 else {},
    )
    _set_adapters(settings, lora, lora_alpha, dora)
    if prompt and task != Task.classification:
        raise ValueError(f"prompts belong to the task classification, not to {task.value}")
    if multi_positive is not None and task != Task.retrieval:
        raise ValueError(f"--multi-positive belongs to the task retrieval, not to {task.value}")
    if freeze and freeze_nothing:
        raise ValueError("give --freeze or --freeze-nothing, not both")
    refuse_existing_model(output, overwrite, resume)
    if validation is not None and validation_share:
        raise ValueError("give --validation or --validation-share, not both")
    if validation is None and validation_split is not None:
        raise ValueError("--validation-split is of the validation pairs: name them with --validation")
    check_splits(data, validation, test or (), split, validation_split)
    reading = {
        "columns": columns_of(image_column, text_column, label),
        "encoding": encoding,
        "image_root": image_root,
        "on_error": on_error,
        "max_error_rate": max_error_rate,
        "background": background,
    }

    def read(source: str, part: str | None):
        kind = class_format(source, part, format) if task == Task.classification else format
        return load_pairs(source, split=part, format=kind, **reading)

    pairs = read(data, split)
    if not hasattr(pairs, "select"):
        raise ValueError("fine-tuning reads its pairs in epochs, and a stream of shards has no length: unpack it")
    held_out = None if validation is None else read(validation, validation_split)
    # of all pairs: the part that is set aside may hold a class alone
    classes = class_names(pairs) if task == Task.classification else None
    if validation_share:
        kept, held = split_validation(pairs, validation_share, pairs.image_ids(), seed)
        pairs, held_out = pairs.select(kept), pairs.select(held)
    run(
        model,
        pairs,
        settings,
        held_out,
        classes,
        print_line=console.print,
        data=TrainingData.of(data, pairs, split),
    )
    if message := pairs.report.tell():  # what turned out bad while training
        console.print(message)
    console.print(f"model and processor are in {output}")


def _set_adapters(settings, rank: int | None, alpha: int | None, dora: bool) -> None:
    """The options on top of the preset's adapters, if it has any."""
    from dataclasses import replace

    from ..finetuning import LoRASettings

    if rank == 0:
        if dora or alpha is not None:
            raise ValueError("--lora 0 trains whole weights: --dora and --lora-alpha do not go with it")
        settings.lora = None
        return
    if rank is None and alpha is None and not dora:
        return
    adapters = settings.lora or LoRASettings()
    if rank is not None:
        adapters = replace(adapters, rank=rank, alpha=2 * rank)
    if alpha is not None:
        adapters = replace(adapters, alpha=alpha)
    settings.lora = replace(adapters, dora=dora or adapters.dora)


def _rates(options: list[str]) -> dict[str, float]:
    rates = {}
    for option in options:
        pattern, sign, value = option.rpartition("=")
        try:
            rates[pattern] = float(value)
        except ValueError:
            sign = ""
        if not sign or not pattern:
            raise ValueError(f"--rate {option}: write a part and a factor, as text_model=0.1")
    return rates
