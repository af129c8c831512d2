"""The output folder of a run: what is refused before it starts, and what a run that is replaced leaves."""

import errno
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from ..processing.files.writing import claim_folder, remove_owned
from .checkpoints import refuse_foreign_checkpoints, remove_checkpoint

#: Where fine-tuning leaves its adapters alone, beside the merged model.
ADAPTER_FOLDER = "adapter"
#: What makes a folder that of an earlier run.
MODEL = ("config.json", "*.safetensors", "checkpoint-*")


def refuse_existing_model(
    output: Path,
    overwrite: bool = False,
    resume: bool = False,
    needs: Iterable[str] = (),
    held: Iterable[str] = MODEL,
) -> None:
    """Nothing is overwritten by accident, and nothing of others at all.

    Raises:
        FileExistsError: `output` holds a model, checkpoints or something else, and neither `overwrite` nor `resume` was
            asked for; or it holds somebody's files of names that the run needs.
        NotADirectoryError: a file is there.
    """
    claim_folder(output, held, needs, overwrite=overwrite, resume=resume)
    if overwrite:
        refuse_foreign_checkpoints(output)


def refuse_replaced_source(output: Path, source: str | PathLike | None) -> None:
    """Raise where a run begins with a model of the folder that it replaces: if it fails, nothing would be left of it.

    Args:
        source: folder or Hub name that the run begins with; None: no model's.

    Raises:
        FileExistsError: names both.
    """
    if source and Path(source).exists() and Path(source).resolve().is_relative_to(output.resolve()):
        raise FileExistsError(
            errno.EEXIST,
            f"the run begins with {source}, which --overwrite would replace in {output}: choose another --output",
        )


def remove_replaced_run(output: Path) -> None:
    """Delete the records, checkpoints and adapters of the run that is replaced: nothing may describe or resume it.

    Its card stays, and so does everything that no stamp or mark of ours names.
    """
    from .record import remove_records

    remove_records(output)
    remove_owned(output, [f"{ADAPTER_FOLDER}/*", "training.json", "samples/*"])  # the last two of text-to-image
    for folder in output.glob("checkpoint-*"):
        remove_checkpoint(folder)
