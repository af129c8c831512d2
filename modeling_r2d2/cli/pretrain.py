"""`r2d2 pretrain`: pre-train on a user's own pairs."""

from dataclasses import dataclass
from typing import ClassVar

from ..processing.files.settings import setting
from ..training.settings import PretrainingSettings, StartingPoint
from .options import ReadingImages, TrainingPairs, Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class PretrainingRun(PretrainingSettings, StartingPoint, TrainingPairs, ReadingImages, Trusting):
    """What `r2d2 pretrain` takes."""

    panel: ClassVar[str] = "Data"
    data: str = setting(
        help="The pairs: JSONL, CSV/TSV, image folder, Parquet, saved data set, tar shards, emoji:VENDORS or "
        "scenes:VENDORS/train."
    )
    eval_data: str | None = setting(None, "Held-out pairs, for recall@K while training.")
    eval_format: str | None = setting(None, "The format of the held-out pairs. The default is that of --data.")
    eval_split: str | None = setting(None, "Which split the held-out pairs are.")


def pretrain(settings: PretrainingRun) -> None:
    """Pre-train R2D2 (or PRD2, or a system beside it) on image-text pairs."""
    from transformers import set_seed

    from ..integrations.warm_preprocessing import describe_images
    from ..jobs.outputs import refuse_existing_model
    from ..jobs.progress import evaluation_line
    from ..jobs.record import RecordCallback, RunRecord, TrainingData, describe_start
    from ..processing.datasets import load_pairs
    from ..training.pretraining import count_parameters, objectives_of
    from ..training.pretraining import pretrain as run
    from ..training.recipes import find_recipe
    from ..training.start import starting_point

    console = Terminal()
    if settings.eval_data is None and (settings.eval_format or settings.eval_split):
        raise ValueError("--eval-format and --eval-split are of the held-out pairs: name them with --eval-data")
    refuse_existing_model(settings.output, settings.overwrite, settings.resume)
    reading = settings.reading()
    pairs = load_pairs(settings.data, **reading)
    held_out = None
    if settings.eval_data is not None:
        theirs = {"format": settings.eval_format or settings.format, "split": settings.eval_split}
        held_out = load_pairs(settings.eval_data, **{**reading, **theirs})
    set_seed(settings.seed)
    ranker = None if settings.recipe is None else find_recipe(settings.recipe).ranker
    network, processor = starting_point(settings, pairs, ranker)
    settings.recipe = objectives_of(settings, network, processor, pairs)
    amount = f"{len(pairs):,} pairs" if hasattr(pairs, "__len__") else f"a stream of {pairs.num_shards} shards"
    if settings.clip is not None:
        console.print(describe_images(processor, network.config.vision_config))
    console.print(
        f"{amount}, {count_parameters(network) / 1e6:.1f} M parameters, {settings.max_steps} steps of "
        f"{settings.recipe} → {settings.output}"
    )
    data = TrainingData.of(settings.data, pairs, settings.split)
    published = "teacher" if settings.publish == "teacher" else None
    record = RunRecord([data], *describe_start(settings), objectives=str(settings.recipe), published=published)
    trainer = run(network, processor, pairs, settings, held_out, [RecordCallback(record, pairs, settings.resume)])
    if pairs.report is not None and (message := pairs.report.tell()):  # what turned out bad while training
        console.print(message)
    if held_out is not None:
        done, history = trainer.state.global_step, trainer.state.log_history
        prefix = "eval_teacher" if published else "eval"
        evaluated = (logs for logs in history if logs["step"] == done and f"{prefix}_loss" in logs)
        if (found := next(evaluated, None)) is None:  # the last step has not been evaluated yet
            found = trainer.evaluate(metric_key_prefix=prefix)
            trainer.save_state()
        console.print(f"held out: {evaluation_line(found)}")
    console.print(f"model and processor are in {settings.output}")
