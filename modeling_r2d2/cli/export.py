"""`r2d2 export`: a model as ONNX graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..processing.files.settings import setting
from .options import ReadingImages, Trusting
from .terminal import Terminal

#: The first so many pictures are enough to measure ranges on.
RANGE_IMAGES = 256


@dataclass(kw_only=True)
class ExportSettings(ReadingImages, Trusting):
    """What `r2d2 export` takes."""

    model: str = setting(help="The folder or name of an R2D2, a PRD2 or a dual encoder.", argument=True)
    output: Path = setting(help="The folder to write: graphs, config, processor and manifest.")
    precision: Literal["fp32", "fp16", "int8"] = setting(
        "fp32", "Of the graphs: fp16 has half the size, int8 is the smallest and the fastest on a CPU."
    )
    images: Path | None = setting(
        None, "For int8, a folder of typical pictures to measure the ranges of a convolutional tower on."
    )
    overwrite: bool = setting(False, "Replace an earlier export.")


def export(settings: ExportSettings) -> None:
    """Export towers and ranker to ONNX with dynamic batch and length; each graph is compared with torch."""
    from ..integrations.onnx_export import export_onnx

    console = Terminal()
    chosen = None
    if settings.images is not None:
        chosen, problems = _readable(settings.images)
        if problems:
            skipped = f"{len(problems):,} of the pictures could not be read and were skipped, first {problems[0]}"
            console.print(skipped)
        if not chosen:
            raise ValueError(f"--images {settings.images}: no readable picture in it")
    manifest = export_onnx(
        settings.model, settings.output, settings.precision, images=chosen, overwrite=settings.overwrite
    )
    table = console.table("graph", "within", "MB", "deviation", "cosine", title="against torch in float32")
    for record in manifest.graphs.values():
        cosine = "" if record.cosine is None else f"{record.cosine:.6f}"
        deviation = f"{max(record.deviation.values()):.1e}"
        table.add_row(record.file, record.made, f"{record.bytes / 1e6:.1f}", deviation, cosine)
    console.print_table(table)
    if not manifest.graphs.get("ranker"):
        console.print("no ranker: the model is pre-ranking only (PRD2)")
    console.print(
        f"wrote {settings.output}; load it with R2D2OnnxModel.from_pretrained({str(settings.output)!r})",
    )


class _Opened(Sequence):
    """Pictures that are opened when they are taken: photographs would fill the memory."""

    def __init__(self, images: list) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [image.open() for image in self.images[place]]
        return self.images[place].open()


def _readable(source: Path) -> tuple[_Opened, list[str]]:
    """The first `RANGE_PICTURES` that can be read, and what is wrong with those before that cannot."""
    from ..processing.datasets.report import Problem
    from ..processing.files.images import ImageReadError
    from ..search.images import CollectionImage, list_images

    found: list[CollectionImage] = []
    problems: list[str] = []
    for image in list_images(str(source)):
        if len(found) == RANGE_IMAGES:
            break
        if isinstance(image, Problem):
            problems.append(str(image))
            continue
        try:
            image.open()
        except ImageReadError as error:
            problems.append(f"{image.location}: {error}")
        else:
            found.append(image)
    return _Opened(found), problems
