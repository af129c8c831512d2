"""`r2d2 finetune`: fine-tune a model on a user's own pairs."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..finetuning.settings import PRESETS, FinetuningSettings, LoRASettings, Task
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE
from ..processing.files.settings import setting
from .options import ReadingImages, TrainingPairs, Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class FinetuningRun(FinetuningSettings, TrainingPairs, ReadingImages, Trusting):
    """What `r2d2 finetune` takes."""

    panel: ClassVar[str] = "Data"
    #: Of what the presets set, options have no default of their own.
    unset: ClassVar[set[str]] = {"multi_positive"}.union(*(each for kind in PRESETS.values() for each in kind.values()))

    task: Task = setting(help="What to learn.", argument=True)
    model: str = setting(help="The folder or Hub name of the R2D2 or dual encoder to begin with.")
    data: str = setting(
        help="Training pairs, in any format that `r2d2 pretrain` reads; for classification also a folder of classes."
    )
    validation: str | None = setting(None, "Validation pairs; never the test split.")
    validation_share: float = setting(
        0.0,
        "The share of the training pictures that is set aside instead of --validation.",
        bounds={"least": 0, "most": 0.5},
    )
    validation_split: str | None = setting(None, "Which split --validation is.")
    test: list[str] = setting([], "Test data, only to refuse them as validation data. It can be repeated.")
    label: str | None = setting(None, "For matching, the column of labels (1, 0) in files of your own.")
    freeze_nothing: bool = setting(False, "Also train what the preset freezes.")
    lora_rank: int | None = setting(
        None,
        "The rank of the adapters; 0 trains whole weights. The default is the preset's.",
        "--lora",
        bounds=COUNT_OR_NONE,
    )
    lora_alpha: int | None = setting(None, "Alpha of the adapters. The default is twice the rank.", bounds=COUNT)
    dora: bool = setting(False, "Train with DoRA instead of LoRA.")

    @classmethod
    def from_options(cls, **given: Any) -> "FinetuningRun":
        """The preset's settings, with what was given in place of them.

        Raises:
            ValueError: options that contradict each other or the task.
        """
        if given["multi_positive"] is not None and given["task"] != "retrieval":
            raise ValueError(f"--multi-positive belongs to the task retrieval, not to {given['task']}")
        if given["freeze_nothing"]:
            if given["freeze"]:
                raise ValueError("give --freeze or --freeze-nothing, not both")
            given["freeze"] = ()
        return cls.from_preset(**given)

    def __post_init__(self) -> None:
        if self.lora_rank == 0:
            if self.dora or self.lora_alpha is not None:
                raise ValueError("--lora 0 trains whole weights: --dora and --lora-alpha do not go with it")
            self.lora = None
        elif self.lora_rank is not None or self.lora_alpha is not None or self.dora:
            adapters = self.lora or LoRASettings()
            if self.lora_rank is not None:
                adapters = replace(adapters, rank=self.lora_rank, alpha=2 * self.lora_rank)
            if self.lora_alpha is not None:
                adapters = replace(adapters, alpha=self.lora_alpha)
            self.lora = replace(adapters, dora=self.dora or adapters.dora)
        super().__post_init__()
        if self.prompts and self.task != "classification":
            raise ValueError(f"prompts belong to the task classification, not to {self.task}")
        if self.group_column is not None and self.task != "retrieval":
            raise ValueError(f"--group-column belongs to the task retrieval, not to {self.task}")
        if self.validation is not None and self.validation_share:
            raise ValueError("give --validation or --validation-share, not both")
        if self.validation is None and self.validation_split is not None:
            raise ValueError("--validation-split is of the validation pairs: name them with --validation")


def finetune(settings: FinetuningRun) -> None:
    """Fine-tune for retrieval, matching, captions or classification."""
    from ..finetuning.data import class_names
    from ..finetuning.report import check_splits
    from ..finetuning.run import finetune as run
    from ..finetuning.run import split_validation
    from ..jobs.outputs import refuse_existing_model
    from ..jobs.record import TrainingData
    from ..processing.datasets import load_pairs
    from ..processing.datasets.classes import class_format
    from ..processing.datasets.streaming import StreamingPairs

    refuse_existing_model(settings.output, settings.overwrite, settings.resume)
    console, task, split, held = Terminal(), settings.task, settings.split, settings.validation
    check_splits(settings.data, held, settings.test, split, settings.validation_split)

    def read(source: str, part: str | None) -> Any:
        kind = class_format(source, part, settings.format) if task == "classification" else settings.format
        return load_pairs(source, **{**settings.reading(), "split": part, "format": kind})

    pairs = read(settings.data, split)
    if isinstance(pairs, StreamingPairs):
        raise ValueError("fine-tuning reads its pairs in epochs, and a stream of shards has no length: unpack it")
    held_out = None if held is None else read(held, settings.validation_split)
    # of all pairs: the part that is set aside may hold a class alone
    classes = class_names(pairs) if task == "classification" else None
    if settings.validation_share:
        kept, chosen = split_validation(pairs, settings.validation_share, pairs.image_ids(), settings.seed)
        pairs, held_out = pairs.select(kept), pairs.select(chosen)
    data = TrainingData.of(settings.data, pairs, split)
    run(settings.model, pairs, settings, held_out, classes, print_line=console.print, data=data)
    if message := pairs.report.tell():  # what turned out bad while training
        console.print(message)
    console.print(f"model and processor are in {settings.output}")
