"""`r2d2 search`: find pictures, or captions, in an index."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import TrustRemoteCode


class Format(StrEnum):
    """How hits are written."""

    table = "table"
    json = "json"
    csv = "csv"
    sheet = "sheet"


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
    format: Annotated[Format, typer.Option(help="How hits are written.")] = Format.table,
    output: Annotated[Path | None, typer.Option(help="Write to this file; needed for a sheet (PNG and HTML).")] = None,
    model: Annotated[str | None, typer.Option(help="Model folder; default: where the index says.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Use the model's calibration, if it has one.")] = True,
    verify: Annotated[bool, typer.Option(help="Check the checksums of the index first.")] = True,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', …")] = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Find pictures by Chinese text (or by a picture): cosine finds candidates, the ranker orders them."""
    from ..retrieval.results import print_table, to_csv, to_json, write_sheet
    from ..retrieval.retriever import R2D2Retriever
    from .notes import note_unknown

    if format == Format.sheet and output is None:
        raise ValueError("a sheet is a file: name it with --output FILE.png")
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
    note_unknown(retriever.processor.tokenizer, retriever.model.config, texts or [])
    if format == Format.sheet:
        png, page = write_sheet(results, output)
        Console(stderr=True).print(f"wrote {png} and {page}", markup=False, highlight=False, soft_wrap=True)
        return
    if format == Format.table and output is None:
        print_table(results, Console())
        return
    if format == Format.table:
        with output.open("w", encoding="utf-8") as file:
            print_table(results, Console(file=file, width=120))
        return
    written = to_json(results) + "\n" if format == Format.json else to_csv(results)
    if output is None:
        typer.echo(written, nl=False)
    else:
        output.write_text(written, encoding="utf-8")
