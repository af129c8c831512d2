"""`r2d2 index`: make an index of pictures, add to it, take from it."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of
from .terminal import Terminal


def index(
    pictures: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, JSONL, CSV/TSV, Parquet, saved data sets or tar shards; one or several."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the index; added to if it is there.")] = ...,
    model: Annotated[str | None, typer.Option(help="Model folder or name; default: the one of the index.")] = None,
    keep: Annotated[
        str | None, typer.Option(help="For the ranker: 'none' (default), 'states' or 'keys_values'.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of what is kept: 'float16' (default), 'int8' or 'float32'.")
    ] = None,
    vectors: Annotated[str | None, typer.Option(help="'flat', 'hnsw' or 'ivf'; default: by size.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the pictures, where the suffix does not tell.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative paths of JSONL and CSV begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    prune: Annotated[
        bool, typer.Option(help="Remove pictures that the source no longer has, and those whose files are gone.")
    ] = False,
    rebuild: Annotated[
        bool, typer.Option(help="Make the index anew, whatever model it had; searching goes on meanwhile.")
    ] = False,
    remove: Annotated[list[str] | None, typer.Option(help="Remove the picture of this id; repeatable.")] = None,
    device: Device = None,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Index pictures for `r2d2 search`. An interrupted run goes on where it was when it is called again."""
    from ..processing.datasets.report import ErrorReport
    from ..retrieval.building import IndexBuilder
    from ..retrieval.cache import CacheOptions
    from ..retrieval.manifest import MANIFEST, Manifest
    from ..retrieval.retriever import load_model

    if not pictures and not remove:
        raise ValueError("name the pictures to index, or --remove ID")
    console = Terminal()
    there = (output / MANIFEST).is_file() or not pictures
    before = Manifest.load(output, to_remake=rebuild) if there else None
    model = model or (before.model.place(output) if before is not None else None)
    if model is None:
        raise ValueError("name the model that makes the index: --model DIR")
    kept = CacheOptions(**before.cache) if before is not None else CacheOptions()
    kept = CacheOptions(keep or kept.keep, precision or kept.precision)
    network, processor = load_model(model, device=device)
    accelerator = _accelerator()
    with console.status("listing") as status:
        done: dict[str, int] = {}

        def progress(count: int, doing: str) -> None:
            done[doing] = done.get(doing, 0) + count
            status.update(", ".join(f"{doing} {number:,}" if number else doing for doing, number in done.items()))

        builder = IndexBuilder(
            network, processor, output, kept, vectors, batch_size, accelerator=accelerator, progress=progress
        )
        removed, noted = 0, ErrorReport()
        if remove:
            built = builder.remove(remove)
            removed = built.removed
        if pictures:
            built = builder.add(
                pictures if len(pictures) > 1 else pictures[0],
                prune,
                rebuild,
                format=format,
                image_root=image_root,
                columns=columns_of(image_column, text_column),
                encoding=encoding,
                note=noted.add,
            )
            built = replace(built, removed=built.removed + removed)
    if accelerator is not None and not accelerator.is_main_process:
        return
    parts = [f"{number:,} {what}" for what in ("added", "changed", "removed") if (number := getattr(built, what))]
    moved = f", {built.moved:,} of them in a new place" if built.moved else ""
    parts += [f"{built.unchanged:,} unchanged{moved}"] if built.unchanged else []
    console.print(f"{output}: {built.pictures:,} pictures ({', '.join(parts) or 'nothing to do'})")
    if built.resumed:
        console.print(f"{built.resumed:,} of them were taken over from an interrupted run")
    if built.duplicates:
        console.print(f"{built.duplicates:,} pictures have the same content as another")
    for note in noted.notes:
        console.print(note)
    if built.not_pruned:
        console.print(f"nothing was removed: {built.not_pruned}", style="yellow")
    if built.gone:
        examples = ", ".join(built.gone[:3]) + (", …" if len(built.gone) > 3 else "")
        console.print(
            f"{len(built.gone):,} are no longer where they were, such as {examples}: index them from where they are "
            "now, or remove them with --prune",
            style="yellow",
        )
    if built.unreadable:
        console.print(f"{len(built.unreadable):,} could not be read and were skipped:", style="yellow")
        for entry in built.unreadable[:20]:
            line = f"  {entry['location']}: {entry['reason']}"
            console.print(line)
        more = len(built.unreadable) - 20
        rest = f"… and {more:,} more; " if more > 0 else ""
        console.print(f"  {rest}all in {output / 'unreadable.jsonl'}")


def _accelerator():
    """Under `accelerate launch` or torchrun with several processes, each encodes its share of the shards."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator()
