"""`r2d2 search`: find pictures, or captions, in an index."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..processing.files.printable import printable
from .options import Device, MaxPixels, TrustRemoteCode
from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..search.results import SearchResult


class Format(StrEnum):
    """How hits are written."""

    table = "table"
    json = "json"
    csv = "csv"
    sheet = "sheet"


_SUFFIXES = {".json": Format.json, ".csv": Format.csv, ".png": Format.sheet, ".html": Format.sheet}
_PLAIN = ("", ".txt", ".log", ".md")


def search(
    index: Annotated[Path, typer.Argument(help="Folder that `r2d2 index` made.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Queries, each an argument.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Search by this picture instead; repeatable.")] = None,
    find: Annotated[
        str, typer.Option(help="'images', or 'texts': the captions that came with the pictures.")
    ] = "images",
    top_k: Annotated[int, typer.Option(help="Hits of each query.")] = 10,
    candidates: Annotated[int, typer.Option(help="How many of the best by cosine are ranked; 0: none.")] = 128,
    min_match_probability: Annotated[float | None, typer.Option(help="Leave out hits below.")] = None,
    cascade: Annotated[
        int | None, typer.Option(help="Ask both encoders only about so many best of the first one; faster.")
    ] = None,
    format: Annotated[Format | None, typer.Option(help="Of the hits; default: as --output ends, or a table.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file: .json, .csv, or .png or .html for a sheet (both).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model folder; default: where the index says.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Use the model's calibration, if it has one.")] = True,
    verify: Annotated[bool, typer.Option(help="Check the checksums of the index first.")] = True,
    device: Device = None,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Find pictures by Chinese text (or by a picture): cosine finds candidates, the ranker orders them."""
    from ..processing.files.writing import atomic_path, refuse_output
    from ..search.results import refuse_foreign_hits, refuse_foreign_sheet, to_csv, to_json, write_sheet
    from ..search.retriever import R2D2Retriever
    from .notes import note_gone, note_unknown

    format = _format(format, output)
    refuse_output(output, index, *(image or ()), model)
    if format == Format.sheet:
        refuse_foreign_sheet(output)
    elif output is not None:
        refuse_foreign_hits(output)
    retriever = R2D2Retriever.open(index, model, device=device, verify=verify, calibrated=calibrated)
    results = retriever.search(
        texts or None,
        image or None,
        find=find,
        top_k=top_k,
        candidates=candidates,
        min_match_probability=min_match_probability,
        cascade=cascade,
    )
    note_gone(results, index)
    note_unknown(retriever.processor.tokenizer, retriever.model.config, texts or [])
    if format == Format.sheet:
        files = write_sheet(results, output)
        Terminal(stderr=True).print(f"written: {', '.join(map(str, files))}")
        return
    if output is None:
        if format == Format.table:
            _print(results, Terminal())
        else:
            text = to_json(results) + "\n" if format == Format.json else to_csv(results)
            # to a program every name as it is, to a terminal nothing that steers it
            sys.stdout.write(printable(text, lines=True) if sys.stdout.isatty() else text)
        return
    with atomic_path(output) as path:
        if format == Format.json:
            path.write_text(to_json(results) + "\n", encoding="utf-8")
        elif format == Format.csv:  # as Excel takes it: it knows UTF-8 by its mark alone
            path.write_text(to_csv(results, "\r\n"), encoding="utf-8-sig", newline="")
        else:
            with path.open("w", encoding="utf-8") as file:
                _print(results, Terminal(file=file))
    Terminal(stderr=True).print(f"written: {output}")


def _format(format: Format | None, output: Path | None) -> Format:
    """As asked for, or as the file's suffix says.

    Raises:
        ValueError: the two contradict each other, a sheet has no file, or the suffix is of something else.
    """
    suffix = "" if output is None else output.suffix.lower()
    named = _SUFFIXES.get(suffix)
    if format is None and (named is not None or suffix in _PLAIN):
        return named or Format.table
    if format is None or (format == Format.sheet and output is not None and named is None):
        raise ValueError(f"--output {output}: it ends in none of {', '.join([*_SUFFIXES, '.txt'])}")
    if format == Format.sheet and output is None:
        raise ValueError("a sheet is a file: name it with --output FILE.png")
    if named is not None and named != format:
        raise ValueError(f"--format {format} and --output {output} contradict each other: leave --format out")
    return format


def _print(results: "Sequence[SearchResult]", terminal: Terminal) -> None:
    """A table for each query: rank, score, match probability, cosine and the file or caption."""
    for result in results:
        texts = any(hit.text is not None for hit in result.hits)
        table = terminal.table("rank", "score", "match", "cosine", *(["caption"] if texts else []), "picture")
        for column in table.columns[:4]:
            column.justify = "right"
        for hit in result.hits:
            match = "–" if hit.match_probability is None else f"{hit.match_probability:.3f}"
            name = hit.path if hit.path is not None and hit.path.endswith(hit.id) else hit.id
            name += f" ({hit.problem})" if hit.problem else ""
            cells = [str(hit.rank), f"{hit.score:.3f}", match, f"{hit.cosine:.3f}"]
            table.add_row(*cells, *([printable(hit.text or "")] if texts else []), printable(name))
        terminal.print(printable(result.query), style="bold")
        if result.hits:
            terminal.print_table(table)
        else:
            terminal.print("nothing found")
