"""Pre-training as one call: pairs in, a model folder out. `r2d2 pretrain` and `r2d2 demo` are thin over it."""

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..inference.loading import load_config, load_processor
from ..inference.recall import retrieval_metrics_of
from ..jobs.outputs import refuse_existing_model, refuse_replaced_source, remove_replaced_run
from ..jobs.same_run import checkpoint_to_resume, only_run
from ..model.modeling_wukong import WukongModel
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_r2d2 import R2D2Processor
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED, SHARE, require_numbers
from ..processing.augmentation import R2D2Augmentation
from ..processing.collation import PretrainingDataset, R2D2PretrainingCollator, StreamingPretrainingDataset
from ..processing.datasets.records import require_true_pairs
from ..processing.datasets.streaming import StreamingPairs
from ..processing.masking import TextMasking
from .arguments import R2D2TrainingArguments
from .recipes import RECIPES, Recipe, recipe_for
from .trainer import R2D2Trainer

logger = logging.getLogger(__name__)


@dataclass
class PretrainingSettings:
    """What `pretrain` does; the command line has the same names.

    Args:
        output: folder of checkpoints and of the final model.
        steps, batch_size (per worker), gradient_accumulation: length and size of the run.
        learning_rate, warmup (share of the steps), weight_decay, max_grad_norm: AdamW with cosine decay.
        recipe: the objectives; None: those of R2D2 (of PRD2 on a model without ranker) without distillation, and of a
            Wukong its own.
        augmentation: of the training pictures; None: none.
        mask_ratio: share of the text tokens to mask; 0: no MLM. whole_words: mask whole Chinese words (jieba).
        channels_last: memory layout of the pictures, see `R2D2PretrainingCollator`.
        distinct_ids: batches without two pairs of one image id, where the data allow it.
        workers: data loader processes. log_every, eval_every, save_every: in steps; 0: never.
        resume: go on from the last checkpoint in `output`. overwrite: replace a model that is there.
        arguments: further `TrainingArguments`, by name.

    Raises:
        ValueError: a number out of its range.
    """

    output: Path
    steps: int = 1000
    batch_size: int = 64
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0
    recipe: Recipe | None = None
    augmentation: Any = field(default_factory=R2D2Augmentation)
    mask_ratio: float = 0.15
    whole_words: bool = False
    distinct_ids: bool = True
    channels_last: bool = False
    seed: int = 0
    workers: int = 2
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    resume: bool = False
    overwrite: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        require_numbers(self, _RANGES)


_RANGES = {
    "steps": COUNT,
    "batch_size": COUNT,
    "gradient_accumulation": COUNT,
    "learning_rate": POSITIVE,
    "warmup": {"least": 0, "below": 1},
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "mask_ratio": SHARE,
    "seed": SEED,
    "workers": COUNT_OR_NONE,
    "log_every": COUNT_OR_NONE,
    "eval_every": COUNT_OR_NONE,
    "save_every": COUNT_OR_NONE,
}

#: What a run depends on beside the arguments, the model, the processor, the data and the callbacks.
_FIXED = ("augmentation", "mask_ratio", "whole_words", "distinct_ids", "channels_last")


def build_trainer(
    model: R2D2ForPreTraining | WukongModel,
    processor: R2D2Processor,
    pairs: Any,
    settings: PretrainingSettings,
    eval_pairs: Any | None = None,
    callbacks: list | None = None,
) -> R2D2Trainer:
    """The trainer of a pre-training run, over one stateless stream of samples.

    The run is one pass over a data set of virtual length steps × batch, whose order, augmentation and masking
    follow from `settings.seed` and the position alone; so a resumed run sees what the uninterrupted one would.

    Args:
        pairs: a `PairDataset`, or anything indexable whose items are {"image", "text", "image_id"}; or
            `StreamingPairs`, which are shuffled within a buffer and read again from the start until `steps` are made.
        eval_pairs: the same, or a dictionary of them by name, for `eval_every`.

    Raises:
        ValueError: a recipe that does not fit the model, see `Recipe.check`; labelled pairs.
    """
    require_true_pairs("pre-training", pairs, *(eval_pairs.values() if isinstance(eval_pairs, dict) else [eval_pairs]))
    recipe = settings.recipe
    if recipe is None:
        own = Recipe(ranker=model.can_rank, target_guided=None, feature_guided=None)
        recipe = RECIPES[recipe_for(model)] if isinstance(model, WukongModel) else own
    recipe.check(model)
    arguments = R2D2TrainingArguments(
        **{
            "output_dir": str(settings.output),
            "max_steps": settings.steps,
            "per_device_train_batch_size": settings.batch_size,
            "per_device_eval_batch_size": settings.batch_size,
            "gradient_accumulation_steps": settings.gradient_accumulation,
            "learning_rate": settings.learning_rate,
            "warmup_steps": settings.warmup,
            "weight_decay": settings.weight_decay,
            "max_grad_norm": settings.max_grad_norm,
            "seed": settings.seed,
            "dataloader_num_workers": settings.workers,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "logging_strategy": "steps" if settings.log_every else "no",
            "logging_steps": settings.log_every or 500,
            "eval_strategy": "steps" if settings.eval_every and eval_pairs is not None else "no",
            "eval_steps": settings.eval_every or None,
            "save_strategy": "steps" if settings.save_every else "no",
            "save_steps": settings.save_every or 500,
            "save_total_limit": 2,
            # a stream is split over the workers, not read by one and sent to the others
            "accelerator_config": {"dispatch_batches": False if isinstance(pairs, StreamingPairs) else None},
            **settings.arguments,
        }
    )
    step_size = settings.batch_size * settings.gradient_accumulation * arguments.world_size
    masking = None
    if settings.mask_ratio and recipe.reads_masked_texts:
        masking = TextMasking(processor.tokenizer, mask_ratio=settings.mask_ratio, whole_words=settings.whole_words)
    sampling = {"augmentation": settings.augmentation, "masking": masking, "seed": settings.seed}
    train_data: PretrainingDataset | StreamingPretrainingDataset
    if isinstance(pairs, StreamingPairs):
        train_data = StreamingPretrainingDataset(pairs.shuffle(settings.seed), processor, **sampling)
    else:
        train_data = PretrainingDataset(
            pairs,
            processor,
            passes=math.ceil(settings.steps * step_size / len(pairs)),
            shuffle=True,
            distinct_batch=step_size if settings.distinct_ids else None,
            **sampling,
        )
    eval_data: Any
    if isinstance(eval_pairs, dict):
        eval_data = {name: _evaluation_data(part, processor) for name, part in eval_pairs.items()}
    else:
        eval_data = None if eval_pairs is None else _evaluation_data(eval_pairs, processor)
    return R2D2Trainer(
        model=model,
        args=arguments,
        train_dataset=train_data,
        eval_dataset=eval_data,
        data_collator=R2D2PretrainingCollator(processor, settings.channels_last),
        processing_class=processor,
        compute_metrics=retrieval_metrics_of(model),
        callbacks=[*recipe.callbacks(), *(callbacks or [])],
        run_settings={name: getattr(settings, name) for name in _FIXED} | {"objectives": str(recipe)},
    )


def _evaluation_data(pairs: Any, processor: R2D2Processor) -> PretrainingDataset | StreamingPretrainingDataset:
    kind = StreamingPretrainingDataset if isinstance(pairs, StreamingPairs) else PretrainingDataset
    return kind(pairs, processor)


def pretrain(
    model: R2D2ForPreTraining | WukongModel,
    processor: R2D2Processor,
    pairs: Any,
    settings: PretrainingSettings,
    eval_pairs: Any | None = None,
    callbacks: list | None = None,
) -> R2D2Trainer:
    """Train and save model and processor to `settings.output`; arguments as `build_trainer`.

    Raises:
        FileExistsError: `output` holds a model already.
        ValueError: as `build_trainer`; no checkpoint to resume, one of another run or another vocabulary.
        NotFiniteError: the run has diverged. OSError: another run writes to `output`.
    """
    with only_run(settings.output):
        refuse_existing_model(settings.output, settings.overwrite, settings.resume)
        if not settings.resume:
            refuse_replaced_source(settings.output, model.config.name_or_path)
        trainer = build_trainer(model, processor, pairs, settings, eval_pairs, callbacks)
        checkpoint = None
        if settings.resume:
            checkpoint = checkpoint_to_resume(settings.output)
            _refuse_other_vocabulary(checkpoint, model, processor)
            if isinstance(pairs, StreamingPairs):
                logger.warning(
                    "a stream is not resumed exactly: weights, optimizer and teacher go on, but the pairs that follow "
                    "are not those that the uninterrupted run would have seen"
                )
        elif trainer.is_world_process_zero():
            remove_replaced_run(settings.output)
        if checkpoint is not None and trainer.is_finished(checkpoint, settings.output):
            return trainer
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.save_model()
        trainer.save_state()  # a card reads it there, even where no checkpoint is kept
    return trainer


def _refuse_other_vocabulary(
    checkpoint: Path, model: R2D2ForPreTraining | WukongModel, processor: R2D2Processor
) -> None:
    """A vocabulary made of other texts gives other numbers to the same characters, even where its size is the same."""
    held = load_config(type(model.config), checkpoint).text_config.vocab_size
    own = model.config.text_config.vocab_size
    entries = load_processor(type(processor), checkpoint).tokenizer.get_vocab()
    if held != own or entries != processor.tokenizer.get_vocab():
        has = f"one of {own:,}" if held != own else "as many, but others"
        raise ValueError(
            f"{checkpoint} was trained with a vocabulary of {held:,} entries, and this run has {has}; where no "
            "tokenizer is named, the vocabulary is made of the characters of the data. Resume on the data that the run "
            f"began with, or begin another run from the checkpoint: `--model {checkpoint}` and another --output, "
            "without --resume, --preset, --config, --clip, --roberta and --tokenizer"
        )


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
