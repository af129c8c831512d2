"""Fine-tuning as one call: a model and pairs in, a model folder out. `r2d2 finetune` is thin over it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

from ..inference.finite import to_json
from ..inference.identity import weights_digest
from ..inference.loading import check_loading, load_config, load_processor, load_whole, load_with_report, model_type
from ..inference.prompts import class_embeddings
from ..jobs.outputs import ADAPTER_FOLDER
from ..jobs.runs import run_folder, train
from ..model.captioning_r2d2 import R2D2ForConditionalGeneration
from ..model.configuration_brivl import BriVLConfig
from ..model.configuration_r2d2 import R2D2Config
from ..model.image_classification_r2d2 import R2D2ForImageClassification
from ..model.image_text_retrieval_r2d2 import R2D2ForImageTextRetrieval
from ..model.modeling_r2d2 import R2D2ForImageTextMatching, R2D2Model
from ..model.pretraining_brivl import BriVLForImageTextMatching, BriVLForImageTextRetrieval
from ..model.processing_brivl import BriVLProcessor
from ..model.processing_r2d2 import R2D2Processor
from ..model.two_towers_r2d2 import require_ranker
from ..processing.augmentation import R2D2Augmentation
from ..processing.datasets.pair_sets import Pairs, as_pairs, innermost
from ..processing.datasets.records import require_true_pairs
from ..processing.files.images import tower_size
from ..processing.files.writing import staged_folder
from ..training.arguments import R2D2TrainingArguments, training_arguments
from ..training.settings import StartingPoint
from .adapters import add_adapters, merge_adapter, save_adapter
from .data import ClassPairs, FinetuningCollator, FinetuningDataset, MatchingDataset, UniformNegatives, class_names
from .metrics import METRICS
from .parameters import freeze
from .report import FinetuningReport, make_report
from .settings import FinetuningSettings
from .trainer import FinetuningTrainer

if TYPE_CHECKING:
    from ..jobs.record import RunRecord, TrainingData

#: The class that a task trains.
MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "retrieval": R2D2ForImageTextRetrieval,
    "matching": R2D2ForImageTextMatching,
    "caption": R2D2ForConditionalGeneration,
    "classification": R2D2ForImageClassification,
}
#: The same of a BriVL.
BRIVL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "retrieval": BriVLForImageTextRetrieval,
    "matching": BriVLForImageTextMatching,
}
#: Parts that may begin at random.
FRESH = ("mlm_head.", "classifier.")
#: Parts that the loss of a task does not read: they do not train, nor wait for gradients on several workers.
UNREAD: dict[str, tuple[str, ...]] = {"matching": ("vision_projection", "text_projection", "temperature")}


def load_for(
    task: str,
    source: Path | str,
    classes: Sequence[str] | None = None,
    prompts: Sequence[str] = (),
) -> tuple[PreTrainedModel, R2D2Processor]:
    """The model of a task with the weights of an R2D2 folder or Hub name, and its processor.

    Args:
        classes: of a classifier.
        prompts: templates with {} whose mean text embedding its head begins with.

    Raises:
        ValueError: matching or captions on a model without a ranker; a classifier without classes; a folder of another
            model, or one that lacks weights of the towers or the ranker.
    """
    known: tuple[Any, Any, Any] = (R2D2Config, R2D2Processor, MODEL_CLASSES)
    if model_type(source) == BriVLConfig.model_type:
        known = (BriVLConfig, BriVLProcessor, BRIVL_CLASSES)
    config_class, processor_class, model_classes = known
    if task not in model_classes:
        raise ValueError(f"{source} is a BriVL, which is fine-tuned for {' and '.join(model_classes)}, not for {task}")
    config = load_config(config_class, source)
    processor = load_processor(processor_class, source)
    if task in ("matching", "caption"):
        require_ranker(config, f"the task {task}", place=source)
    if task == "classification":
        if not classes:
            raise ValueError("a classifier needs its classes")
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    model, info = load_with_report(model_classes[task], source, config=config)
    check_loading(model, info, source, fresh=FRESH)
    if isinstance(model, R2D2ForConditionalGeneration):
        model.set_special_tokens(processor.tokenizer)
    untrained_head = any(name.startswith("classifier.") for name in info["missing_keys"])
    # a second round goes on with its head
    if isinstance(model, R2D2ForImageClassification) and classes and prompts and untrained_head:
        whole = load_whole(R2D2Model, source)
        model.init_classifier(class_embeddings(whole, processor, [[name] for name in classes], prompts))
    return model, processor


def build_trainer(
    model: PreTrainedModel,
    processor: R2D2Processor,
    pairs: Any,
    settings: FinetuningSettings,
    validation: Any | None = None,
    callbacks: list | None = None,
) -> FinetuningTrainer:
    """The trainer of a run: freezes, adapts, and prepares the data; `pairs` as `load_pairs` returns them.

    The run is one pass over a stream of `num_train_epochs` passes whose order and augmentation follow from the seed
    and the position alone, so that a resumed run sees what the uninterrupted one would.

    Args:
        pairs: true pairs; for matching, labelled ones where they have a `label`; for classification, the first text is
            the class.
        validation: the same; judged every `eval_every` epochs.

    Raises:
        ValueError: fewer pairs than a batch, a freeze pattern that matches nothing, only one class to match.
    """
    set_seed(settings.seed)
    start = weights_digest(model, leave_out=FRESH)
    if frozen := (*settings.freeze, *UNREAD.get(settings.task, ())):
        freeze(model, frozen)
    trained: Any = model if settings.lora is None else add_adapters(model, settings.lora)
    arguments = _arguments(settings)
    step_size = settings.per_device_train_batch_size * settings.gradient_accumulation_steps * arguments.world_size
    pairs, validation = as_pairs(pairs), None if validation is None else as_pairs(validation)
    steps_per_epoch = len(pairs) // step_size
    if not steps_per_epoch:
        raise ValueError(
            f"{len(pairs)} pairs are fewer than a batch of {step_size}: lower the batch size (--batch-size)"
        )
    arguments.max_steps = settings.num_train_epochs * steps_per_epoch
    arguments.eval_steps = arguments.save_steps = settings.eval_every * steps_per_epoch
    train_data, evaluation = _datasets(processor, pairs, settings, validation, step_size)
    compute_metrics, metric, greater = METRICS[settings.task]
    callbacks = list(callbacks or [])
    if evaluation is not None:
        arguments.eval_strategy = arguments.save_strategy
        if settings.patience:
            arguments.load_best_model_at_end = True
            arguments.metric_for_best_model, arguments.greater_is_better = f"eval_{metric}", greater
            callbacks.append(EarlyStoppingCallback(settings.patience))
    return FinetuningTrainer(
        model=trained,
        args=arguments,
        train_dataset=train_data,
        eval_dataset=evaluation,
        data_collator=FinetuningCollator(processor, settings.task, settings.multi_positive),
        processing_class=processor,
        compute_metrics=compute_metrics,
        callbacks=callbacks,
        settings=settings,
        steps_per_epoch=steps_per_epoch,
        run_settings=_fixed(settings, start),
    )


#: What may change between a run and its continuation, and what the trainer's arguments tell already.
_FREE = {
    *("output", "preset", "resume", "overwrite", "arguments", "dataloader_num_workers", "logging_steps"),
    *("save_total_limit", "seed", "learning_rate", "weight_decay"),
}


def _fixed(settings: FinetuningSettings, start: str) -> dict[str, Any]:
    """What a run depends on beside the arguments, the model's configuration, the processor and the data."""
    held = {name: value for name, value in _own(settings).items() if name not in _FREE}
    if not settings.patience:
        del held["eval_every"]
    return {**held, "starting_weights": start}


def _own(settings: FinetuningSettings) -> dict[str, Any]:
    """Without what the command line has besides."""
    return {each.name: getattr(settings, each.name) for each in fields(FinetuningSettings)}


def _arguments(settings: FinetuningSettings) -> R2D2TrainingArguments:
    own = settings.lr_scheduler_type in ("retrieval", "matching")
    return training_arguments(
        settings,
        max_steps=1,  # known when the data are
        per_device_eval_batch_size=settings.per_device_train_batch_size,
        lr_scheduler_type="constant" if own else settings.lr_scheduler_type,
        warmup_steps=0 if own else settings.warmup_steps,
        save_strategy="steps",
        label_names=["image_ids"] if settings.task == "retrieval" else ["labels"],
        prediction_loss_only=settings.task == "caption",
        restore_callback_states_from_checkpoint=bool(settings.patience),
    )


def _datasets(
    processor: R2D2Processor, pairs: Pairs, settings: FinetuningSettings, validation: Pairs | None, step_size: int
) -> tuple[FinetuningDataset, FinetuningDataset | None]:
    (_, size), _ = tower_size(processor)
    augmentation = R2D2Augmentation(size=size) if settings.augment else None
    if augmentation is not None and not (settings.mirror and innermost(pairs).mirrors):
        augmentation = replace(augmentation, flip=0.0)
    stream = {
        "augmentation": augmentation,
        "seed": settings.seed,
        "shuffle": True,
        # steps_per_epoch rounds down, so this is never too short
        "passes": settings.num_train_epochs,
        "distinct_batch": step_size if settings.task == "retrieval" else None,
    }
    if settings.task == "matching":
        if validation is not None and not validation.labelled:
            validation = UniformNegatives(validation, validation.image_ids(), seed=0)
        kind: type[FinetuningDataset] = MatchingDataset
    else:
        kind = FinetuningDataset
    train = kind(pairs, processor, **stream)
    return train, None if validation is None else kind(validation, processor)


def split_validation(pairs: Any, share: float, image_ids: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training and of the validation part: `share` of the *pictures*, so that none is in both; of pairs
    that belong together, which go by the first picture of each group, `share` of the groups.

    Raises:
        ValueError: a part would be empty.
    """
    if (together := getattr(pairs, "together", 1)) > 1:
        image_ids = image_ids[::together].repeat(together)
    ids = np.unique(image_ids)
    chosen = np.random.default_rng(seed).permutation(ids)[: math.ceil(share * len(ids))]
    held_out = np.isin(image_ids, chosen)
    if not 0 < held_out.sum() < len(pairs):
        raise ValueError(f"a validation share of {share} leaves {int((~held_out).sum())} of {len(pairs)} pairs")
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def finetune(
    source: Path | str,
    pairs: Any,
    settings: FinetuningSettings,
    validation: Any | None = None,
    classes: Sequence[str] | None = None,
    print_line: Callable[[str], Any] | None = None,
    callbacks: list | None = None,
    data: "TrainingData | None" = None,
) -> tuple[FinetuningTrainer, FinetuningReport]:
    """Fine-tune the model in `source` and save it to `settings.output`.

    The folder loads by `from_pretrained`; with LoRA the adapters are merged into it, and lie besides in `adapter/`,
    for the base model. `finetuning.json` holds the report, the settings, and the names of model and data, which
    `r2d2 card` states.

    Args:
        source: folder or Hub name of an R2D2.
        pairs: as for `build_trainer`.
        validation: as for `build_trainer`.
        classes: of a classifier; None: the different texts of `pairs`.
        print_line: is given the lines of the report before the run starts; None: nothing is printed.
        data: name and counts of `pairs`, as `TrainingData.of` makes them; None: the card says that they are unknown.

    Raises:
        FileExistsError: `output` holds a model already.
        ValueError: as `load_for` and `build_trainer`; nothing to resume, or a checkpoint of another run.
        NotFiniteError: the run has diverged.
        OSError: another run writes to `output`.
    """
    from ..jobs.record import RunRecord, describe_start

    needs = () if settings.lora is None else (ADAPTER_FOLDER,)
    with run_folder(settings.output, settings.overwrite, settings.resume, source, needs) as checkpoint:
        record = RunRecord([] if data is None else [data], *describe_start(StartingPoint(model=Path(source))))
        if checkpoint is not None:
            record = record.after(RunRecord.of_finetuning(settings.output))
        pairs, validation = as_pairs(pairs), None if validation is None else as_pairs(validation)
        bad = innermost(pairs).report
        if settings.task != "matching":
            require_true_pairs(settings.task, pairs, validation)
        if settings.task == "classification":
            classes = list(classes) if classes is not None else class_names(pairs)
            pairs = ClassPairs(pairs, classes)
            validation = None if validation is None else ClassPairs(validation, classes)
        model, processor = load_for(settings.task, source, classes, settings.prompts)
        trainer = build_trainer(model, processor, pairs, settings, validation, callbacks)
        report = make_report(
            trainer.model,
            processor,
            pairs,
            trainer.train_dataset.image_ids(),
            settings,
            trainer.steps_per_epoch,
            trainer.args.world_size,
            validation,
        )
        if print_line is not None:
            for line in report.lines():
                print_line(line)
        if train(trainer, checkpoint, begin=lambda: _write_report(trainer, report, record)):
            if data is not None and bad is not None:  # some turn out bad while training
                data.bad_records = bad.errors
            _save(trainer, processor, report, record)
        return trainer, report


def _save(trainer: FinetuningTrainer, processor: R2D2Processor, report: FinetuningReport, record: "RunRecord") -> None:
    output = trainer.settings.output
    trainer.check_weights()
    if trainer.args.should_save:
        if trainer.settings.lora is not None:
            adapted: Any = trainer.model  # a PeftModel
            with staged_folder(output, "finetune") as folder:
                save_adapter(adapted, folder / ADAPTER_FOLDER)
            trainer.model = merge_adapter(adapted)
        with staged_folder(output, "finetune", stale=("model*.safetensors*",)) as folder:
            trainer.model.save_pretrained(folder)
            processor.save_pretrained(folder)
        trainer.save_state()
        _write_report(trainer, report, record)


def _write_report(trainer: FinetuningTrainer, report: FinetuningReport, record: "RunRecord") -> None:
    """Into finetuning.json: before the run, for one that is interrupted, and after it."""
    from ..jobs.record import FINETUNING_FILE

    held = {"record": asdict(record), "report": report.to_dict(), "best_metric": trainer.state.best_metric}
    own = _own(trainer.settings)
    settings = {**own, "output": own["output"].name, "lora": None if own["lora"] is None else asdict(own["lora"])}
    text = to_json({**held, "settings": settings}, FINETUNING_FILE, indent=2)
    with staged_folder(trainer.settings.output, "finetune") as folder:
        (folder / FINETUNING_FILE).write_text(text + "\n", encoding="utf-8")


__all__ = [
    "MODEL_CLASSES",
    "build_trainer",
    "finetune",
    "load_for",
    "split_validation",
]
