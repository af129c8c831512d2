"""Pre-training as one call: pairs in, a model folder out. `r2d2 pretrain` and `r2d2 demo` are thin over it."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from ..inference.calibration import Calibration
from ..inference.loading import load_config, load_processor
from ..inference.recall import retrieval_metrics_of
from ..jobs.runs import run_folder, train
from ..model.modeling_wukong import WukongModel
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_r2d2 import R2D2Processor
from ..processing.augmentation import R2D2Augmentation
from ..processing.batch_augmentation import BatchAugmentation
from ..processing.collation import (
    PretrainingDataset,
    R2D2PretrainingCollator,
    StreamingPretrainingDataset,
    tower_size,
)
from ..processing.datasets.pair_sets import Pairs, as_pairs
from ..processing.datasets.records import require_true_pairs
from ..processing.datasets.streaming import StreamingPairs
from ..processing.masking import TextMasking
from .arguments import training_arguments
from .frozen_towers import frozen_towers_data
from .held_out import calibrate_on, hold_out
from .recipes import RankerRecipe, Recipe, find_recipe, recipe_for
from .settings import PretrainingSettings
from .trainer import R2D2Trainer

logger = logging.getLogger(__name__)


#: What a run depends on beside the arguments, the model, the processor, the data and the callbacks.
_FIXED = ("whole_words", "distinct_ids", "channels_last")


def build_trainer(
    model: R2D2ForPreTraining | WukongModel,
    processor: R2D2Processor,
    pairs: Any,
    settings: PretrainingSettings,
    eval_pairs: Any | None = None,
    callbacks: list | None = None,
) -> R2D2Trainer:
    """The trainer of a pre-training run, over one stateless stream of samples.

    The run is one pass over a data set of virtual length max_steps × batch, whose order, augmentation and masking
    follow from `settings.seed` and the position alone; so a resumed run sees what the uninterrupted one would.

    Args:
        pairs: a `PairDataset`, or anything indexable whose items are {"image", "text", "image_id"}; or
            `StreamingPairs`, which are shuffled within a buffer and read again until `max_steps` are made.
        eval_pairs: the same, or a dictionary of them by name, for `eval_steps`.

    Raises:
        ValueError: a recipe that does not fit the model, see `Recipe.check`; labelled pairs; no teacher to publish.
    """
    require_true_pairs("pre-training", pairs, *(eval_pairs.values() if isinstance(eval_pairs, dict) else [eval_pairs]))
    recipe = objectives_of(settings, model, processor, pairs)
    recipe.check(model)
    arguments = training_arguments(
        settings,
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        eval_strategy="steps" if settings.eval_steps and eval_pairs is not None else "no",
        eval_steps=settings.eval_steps or None,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 500,
        # a stream is split over the workers, not read by one and sent to the others
        accelerator_config={"dispatch_batches": False if isinstance(pairs, StreamingPairs) else None},
    )
    step_size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    masking = None
    mask_ratio = 0.15 if settings.mask_ratio is None else settings.mask_ratio
    if mask_ratio and recipe.reads_masked_texts:
        masking = TextMasking(processor.tokenizer, mask_ratio=mask_ratio, whole_words=settings.whole_words)
    augmentation = settings.augmentation
    if augmentation is None and settings.augment:
        (_, size), _ = tower_size(processor)
        augmentation = R2D2Augmentation(size=size)
    mirrors = settings.mirror and as_pairs(pairs).mirrors
    if isinstance(augmentation, R2D2Augmentation | BatchAugmentation) and not mirrors:
        augmentation = replace(augmentation, flip=0.0)
    sampling = {"augmentation": augmentation, "masking": masking, "seed": settings.seed}
    train_data: PretrainingDataset | StreamingPretrainingDataset
    collator = R2D2PretrainingCollator(processor, settings.channels_last)
    if isinstance(recipe, RankerRecipe):
        _refuse_for_frozen_towers(settings, pairs)
        student = cast(R2D2ForPreTraining, model)  # or `check` has refused it
        student.freeze_towers(masked_texts=masking is not None)
        train_data, collator = frozen_towers_data(
            cast(Any, student).to(arguments.device),
            processor,
            pairs,
            folder=settings.output.with_name(f"{settings.output.name}.states"),
            precision=None if settings.states == "none" else settings.states or "float32",
            workers=settings.dataloader_num_workers,
            replace=settings.overwrite,
            masking=masking,
            seed=settings.seed,
            steps=settings.max_steps,
            step_size=step_size,
            ramp=round(recipe.negative_ramp * settings.max_steps),
        )
    elif isinstance(pairs, StreamingPairs):
        train_data = StreamingPretrainingDataset(pairs.shuffle(settings.seed), processor, **sampling)
    else:
        train_data = PretrainingDataset(
            pairs,
            processor,
            passes=math.ceil(settings.max_steps * step_size / len(pairs)),
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
        data_collator=collator,
        processing_class=processor,
        compute_metrics=retrieval_metrics_of(model),
        callbacks=[*recipe.callbacks(), *(callbacks or [])],
        run_settings={
            **{name: getattr(settings, name) for name in _FIXED},
            "augmentation": augmentation,
            "mask_ratio": mask_ratio,
            "objectives": str(recipe),
            "negative_ramp": recipe.negative_ramp,
            **({"states": settings.states} if settings.states in ("float16", "int8") else {}),
        },
        publish=settings.publish,
    )


def _refuse_for_frozen_towers(settings: PretrainingSettings, pairs: Any):
    """Raise where settings are of towers that train, or the set has no end."""
    if isinstance(pairs, StreamingPairs):
        raise ValueError(
            "the recipe ranker draws negatives from the whole set, and a stream of shards has none: unpack the shards, "
            "or write them as Parquet"
        )
    if settings.grad_cache_chunk or settings.gradient_shares or settings.augmentation is not None:
        raise ValueError(
            "the recipe ranker trains no tower and keeps what towers make of each picture as it is: leave "
            "--grad-cache-chunk, --gradient-shares and an augmentation of your own out"
        )


def objectives_of(settings: PretrainingSettings, model: nn.Module, processor: R2D2Processor, pairs: Any) -> Recipe:
    """The recipe of a run: a `Recipe` as it is; of a name, or else of what the model is made for, as the other settings
    change it.

    Raises:
        ValueError: an unknown name, a setting of something that the recipe lacks, or a mask ratio without mask token.
    """
    if isinstance(settings.recipe, Recipe):
        return settings.recipe
    if settings.states is not None and settings.recipe != "ranker":
        raise ValueError("--states are what the recipe ranker keeps of frozen towers: other recipes train them")
    sized = hasattr(pairs, "__len__")
    named = find_recipe(settings.recipe or recipe_for(model))
    masking = None if settings.mask_ratio is None else settings.mask_ratio > 0
    if masking and processor.tokenizer.mask_token_id is None:
        raise ValueError("--mask-ratio: the tokenizer has no mask token to mask texts with; leave it out")
    recipe = named.adapted(
        len(pairs) if sized else None,
        distil=settings.distil,
        masking=masking,
        queue_size=settings.queue_size,
        alpha=settings.alpha,
        momentum=settings.momentum,
        rank_from=settings.rank_from,
        negative_ramp=settings.negative_ramp,
        feature_guided=settings.feature_guided,
    )
    if not recipe.reads_masked_texts and (settings.whole_words or settings.mask_ratio):
        raise ValueError(
            f"--mask-ratio and --whole-words are of masked texts, which {recipe} does not read (--mask-ratio 0.15)"
        )
    return recipe


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
    """Train and save model and processor to `settings.output`; arguments as `build_trainer`. With the recipe ranker it
    is calibrated at the end, on `eval_pairs` or on pairs that are left out of training (`settings.calibrate`).

    Raises:
        FileExistsError: `output` holds a model already.
        ValueError: as `build_trainer`; no checkpoint to resume, one of another run or another vocabulary.
        NotFiniteError: the run has diverged.
        OSError: another run writes to `output`.
    """
    source, held_out = model.config.name_or_path, None
    if settings.calibrate and (settings.recipe == "ranker" or isinstance(settings.recipe, RankerRecipe)):
        held_out = eval_pairs if isinstance(eval_pairs, Pairs) else None
        if held_out is None:
            pairs, held_out = hold_out(pairs, settings.seed)
        if held_out is None:
            logger.warning(
                f"too few pairs to hold any out: the ranker is not calibrated; `r2d2 calibrate {settings.output}` does "
                "it on others"
            )
    with run_folder(settings.output, settings.overwrite, settings.resume, source) as checkpoint:
        trainer = build_trainer(model, processor, pairs, settings, eval_pairs, callbacks)
        if checkpoint is not None:
            _refuse_other_vocabulary(checkpoint, model, processor)
            if isinstance(pairs, StreamingPairs):
                logger.warning(
                    "a stream is not resumed exactly: weights, optimizer and teacher go on, but the pairs that follow "
                    "are not those that the uninterrupted run would have seen"
                )
        if train(trainer, checkpoint):
            trainer.save_model()
            trainer.save_state()  # a card reads it there, even where no checkpoint is kept
        elif held_out is not None and Calibration.of_model(settings.output, trainer.model) is not None:
            held_out = None
        if held_out is not None and trainer.is_world_process_zero():
            calibrate_on(settings.output, held_out, settings.seed)
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
