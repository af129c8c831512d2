"""A run's set-up, the same for pre-training, fine-tuning, text-to-image training and the demo."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from .outputs import MODEL, refuse_existing_model, refuse_replaced_source, remove_replaced_run
from .same_run import checkpoint_to_resume, only_run


@contextmanager
def run_folder(
    output: Path,
    overwrite: bool = False,
    resume: bool = False,
    source: str | PathLike | None = None,
    needs: Iterable[str] = (),
    held: Iterable[str] = MODEL,
) -> Iterator[Path | None]:
    """Claim the folder of a run for as long as it trains. Nothing that is there is changed yet.

    Args:
        output: the folder. It is made.
        overwrite: a run that is there may be replaced.
        resume: go on with the run that is there.
        source: folder or Hub name of the model that the run begins with; None: no model's.
        needs: as for `claim_folder`.
        held: as for `claim_folder`.

    Yields:
        the checkpoint to resume from; None of a run that begins.

    Raises:
        FileExistsError: the folder holds a model, checkpoints or something else, and neither `overwrite` nor `resume`
            was asked for; or `source` lies in it and would be replaced.
        ValueError: there is nothing to resume.
        OSError: another run writes there.
    """
    with only_run(output):
        refuse_existing_model(output, overwrite, resume, needs, held)
        if not resume:
            refuse_replaced_source(output, source)
        yield checkpoint_to_resume(output) if resume else None


def train(trainer: Any, checkpoint: Path | None, begin: Callable[[], Any] | None = None) -> bool:
    """Train in a folder that `run_folder` has claimed.

    Args:
        trainer: an `R2D2Trainer`. A run that is finished is only loaded into it.
        checkpoint: where to resume from; None: the run begins, in place of the one that was there.
        begin: called by one process before the first step.

    Returns:
        whether it trained; False of a run that was finished.

    Raises:
        ValueError: the checkpoint is of another run.
        NotFiniteError: the run has diverged.
    """
    output = Path(trainer.args.output_dir)
    if checkpoint is not None and trainer.is_finished(checkpoint, output):
        return False
    if trainer.is_world_process_zero():
        if checkpoint is None:
            remove_replaced_run(output)
        if begin is not None:
            begin()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return True


__all__ = ["run_folder", "train"]
