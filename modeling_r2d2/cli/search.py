"""`r2d2 search`: find pictures, or captions, in an index."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..processing.files.printable import printable
from ..processing.files.settings import setting
from .options import Computing, ReadingImages
from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..search.results import SearchResult


#: How hits are written.
Format = Literal["table", "json", "csv", "sheet"]
_SUFFIXES: dict[str, Format] = {".json": "json", ".csv": "csv", ".png": "sheet", ".html": "sheet"}
_PLAIN = ("", ".txt", ".log", ".md")


@dataclass(kw_only=True)
class SearchSettings(ReadingImages, Computing):
    """What `r2d2 search` takes."""

    index: Path = setting(help="The folder that `r2d2 index` made.", argument=True)
    texts: list[str] = setting([], "Queries, each an argument.", argument=True)
    image: list[Path] = setting([], "Search by this picture instead. It can be repeated.")
    find: Literal["images", "texts"] = setting(
        "images", "What is found: pictures, or the captions that came with them."
    )
    top_k: int = setting(10, "The number of hits of each query.")
    candidates: int = setting(128, "How many of the best by cosine are ranked. With 0 none are.")
    min_match_probability: float | None = setting(None, "Leave out hits below this match probability.")
    cascade: int | None = setting(None, "Ask both encoders only about so many best of the first one, which is faster.")
    score: Literal["fused", "published"] | None = setting(
        None,
        "What orders the candidates: cosine / temperature + log-odds of a match, or cosine + match probability. The "
        "default is as the model says.",
    )
    format: Format | None = setting(None, "How hits are written. The default is as --output ends, or else a table.")
    output: Path | None = setting(
        None, "Write to this file: .json, .csv, or .png or .html for a sheet, which writes both."
    )
    model: str | None = setting(None, "The folder of the model. The default is where the index says.")
    calibrated: bool = setting(True, "Use the calibration of the model, if it has one.")
    verify: bool = setting(True, "Check the checksums of the index first.")


def search(settings: SearchSettings) -> None:
    """Find pictures by Chinese text (or by a picture): cosine finds candidates, the ranker orders them."""
    from ..processing.files.writing import atomic_path, refuse_output
    from ..search.results import refuse_foreign_hits, refuse_foreign_sheet, to_csv, to_json, write_sheet
    from ..search.retriever import R2D2Retriever
    from .notes import note_gone, note_unknown

    format, output = _format(settings.format, settings.output), settings.output
    refuse_output(output, settings.index, *settings.image, settings.model)
    if format == "sheet" and output is not None:
        refuse_foreign_sheet(output)
    elif output is not None:
        refuse_foreign_hits(output)
    retriever = R2D2Retriever.open(
        settings.index, settings.model, device=settings.device, verify=settings.verify, calibrated=settings.calibrated
    )
    results = retriever.search(
        settings.texts or None,
        settings.image or None,
        find=settings.find,
        top_k=settings.top_k,
        candidates=settings.candidates,
        min_match_probability=settings.min_match_probability,
        cascade=settings.cascade,
        score=settings.score,
    )
    note_gone(results, settings.index)
    note_unknown(retriever.processor.tokenizer, retriever.model.config, settings.texts)
    if format == "sheet" and output is not None:
        files = write_sheet(results, output)
        Terminal(stderr=True).print(f"written: {', '.join(map(str, files))}")
        return
    if output is None:
        if format == "table":
            _print(results, Terminal())
        else:
            text = to_json(results) + "\n" if format == "json" else to_csv(results)
            # to a program every name as it is, to a terminal nothing that steers it
            sys.stdout.write(printable(text, lines=True) if sys.stdout.isatty() else text)
        return
    with atomic_path(output) as path:
        if format == "json":
            path.write_text(to_json(results) + "\n", encoding="utf-8")
        elif format == "csv":  # as Excel takes it: it knows UTF-8 by its mark alone
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
        return named or "table"
    if format is None or (format == "sheet" and output is not None and named is None):
        raise ValueError(f"--output {output}: it ends in none of {', '.join([*_SUFFIXES, '.txt'])}")
    if format == "sheet" and output is None:
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
