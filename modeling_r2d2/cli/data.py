"""`r2d2 data`: look at a data set before using it; make lists of matching pairs."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .examples import EXAMPLES
from .options import Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of, verb
from .terminal import Terminal

data_app = typer.Typer(
    name="data", help="Check a data set; make lists of matching pairs.", no_args_is_help=True, rich_markup_mode=None
)

_FORMAT = "Of the data, where the suffix does not tell: icm, flickr30k-cna, chinese-clip, …"


@data_app.command(epilog=f"Example: {EXAMPLES['data check']}")
@verb
def check(
    data: Annotated[str, typer.Argument(help="What to check: file, folder or shards, as for `r2d2 pretrain`.")],
    format: Annotated[str | None, typer.Option(help=_FORMAT)] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    label: Annotated[str | None, typer.Option(help="Column of labels, for labelled pairs of your own.")] = None,
    max_error_rate: Annotated[float, typer.Option(help="Exit with status 1 above this share of bad records.")] = 0.01,
    background: Annotated[str | None, typer.Option(help="Composite transparent pictures on this colour.")] = None,
    list_errors: Annotated[int, typer.Option(min=0, help="Bad records to print; --report holds more.")] = 20,
    sheet: Annotated[Path | None, typer.Option(help="Draw a contact sheet to this PNG.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Pictures on the sheet.")] = 24,
    report: Annotated[Path | None, typer.Option(help="Write all that was found to this JSON file.")] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures on the sheet.")] = 0,
    max_pixels: MaxPixels = None,
):
    """Decode every picture, count, measure; name broken rows by file and line."""
    from ..figures.drawings import refuse_foreign_drawing
    from ..processing.datasets import load_pairs
    from ..processing.datasets.check import check_pairs
    from ..processing.files.writing import refuse_output, write_text

    if not 0 <= max_error_rate <= 1:
        raise ValueError(f"--max-error-rate is {max_error_rate}; it is a share between 0 and 1")
    pairs = load_pairs(
        data,
        format=format,
        split=split,
        image_root=image_root,
        columns=columns_of(image_column, text_column, label),
        encoding=encoding,
        max_error_rate=1.0,
        background=background,
        check_images="exists",  # every picture is decoded below
        quiet=True,  # all is told below
    )
    if not _is_report(report):
        refuse_output(report, data)
    refuse_foreign_drawing(sheet)
    found = check_pairs(pairs, images, seed)
    console = Terminal()
    console.print_table(_table(console, found, data))
    for problem in found.problems[:list_errors]:
        console.print(str(problem))
    if found.errors > list_errors:
        console.print(f"… and {found.errors - list_errors:,} more bad records")
    for note in [*found.notes, *found.remarks]:
        console.print(f"note: {note}")
    if report is not None:
        write_text(report, json.dumps(found.to_dict(), ensure_ascii=False, indent=2) + "\n")
        console.print(f"report: {report}")
    if sheet is not None and found.sample:
        from ..figures.pair_sheet import pair_sheet

        pair_sheet(found.sample, sheet, title=f"{Path(data).name}: {len(found.sample)} of {found.pairs:,} pairs")
        console.print(f"contact sheet: {sheet}")
    if found.error_rate > max_error_rate or not found.pairs:
        share = f"{found.error_rate:.2%} of the records are bad, more than {max_error_rate:.2%}"
        console.print(share if found.pairs else "no pair is whole", style="red")
        raise typer.Exit(1)


@data_app.command("matching-pairs", epilog=f"Example: {EXAMPLES['data matching-pairs']}")
@verb
def matching_pairs(
    data: Annotated[str, typer.Argument(help="Pairs to draw from, or emoji:VENDOR.")],
    output: Annotated[Path, typer.Argument(help="List to write (JSON lines).")],
    negatives: Annotated[str, typer.Option(help="'uniform', or 'fgr': hard ones of --model.")] = "uniform",
    model: Annotated[str | None, typer.Option(help="Whose hard negatives to draw.")] = None,
    format: Annotated[str | None, typer.Option(help=_FORMAT)] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    seed: int = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace a list that is there.")] = False,
    trust_remote_code: TrustRemoteCode = False,
):
    """Save a list of matching pairs, so that every model is judged alike.

    `r2d2 evaluate --task matching --data DATA --pairs LIST` reads it.
    """
    from ..evaluation.matching_pairs import make_matching_pairs
    from ..processing.datasets.gallery import Gallery, open_pairs
    from ..processing.files.writing import refuse_output

    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} is there already: results on another list are not comparable (--overwrite)")
    refuse_output(output, data, model)
    if (negatives == "fgr") != (model is not None):
        raise ValueError("--negatives fgr draws the hard negatives of a model: give --model, and only then")
    reading = {"format": format, "split": split, "image_root": image_root, "encoding": encoding}
    options = {**reading, "columns": columns_of(image_column, text_column)}
    if data.startswith("emoji:"):
        options = {}
    gallery = Gallery.from_pairs(open_pairs(data, **options))
    network = processor = None
    if model is not None:
        from ..inference.models import load_model

        network, processor = load_model(model)
    pairs = make_matching_pairs(gallery, negatives, seed, network, processor)
    about = {**pairs.about, "data": Path(data).name, **({"model": Path(model).name} if model else {})}
    type(pairs)(pairs.image_ids, pairs.texts, pairs.labels, about).save(output)
    Terminal().print(f"{len(pairs):,} pairs, {sum(pairs.labels):,} of them matching → {output}")


def _is_report(path: Path | None) -> bool:
    """Whether a file is what --report wrote before."""
    try:
        held = None if path is None else json.loads(path.read_text(encoding="utf-8"))
        return isinstance(held, dict) and {"records", "pairs", "problems"} <= held.keys()
    except (OSError, ValueError, RecursionError):
        return False


def _table(console: Terminal, found, data: str) -> Table:
    from ..processing.datasets.check import LONG_TEXT

    table = console.table("", "count", "least", "25 %", "median", "75 %", "most", title=data)
    table.add_row("records", f"{found.records:,}")
    table.add_row("bad records", f"{found.errors:,} ({found.error_rate:.2%})")
    table.add_row("pairs", f"{found.pairs:,}")
    for label, count in found.labels.items():
        table.add_row(f"  labelled {label}", f"{count:,}")
    _spread(table, "pictures, texts each", f"{found.images:,}", found.texts_per_image, "g")
    _spread(table, "  width, pixels", "", found.widths, ".0f")
    _spread(table, "  height, pixels", "", found.heights, ".0f")
    _spread(table, "  area, megapixels", "", found.area, ".3f")
    _spread(table, "texts, characters", f"{found.texts:,}", found.characters, ".0f")
    shared = sum(found.duplicates.values())
    table.add_row("captions of several pictures", f"{len(found.duplicates):,} (of {shared:,} pictures)")
    if found.duplicates:
        text, count = next(iter(found.duplicates.items()))
        table.add_row("  most often", f"{count:,} × {text[:20]}")
    for name, count in (
        ("pictures with the pixels of another", found.same_images),
        ("pairs that came before", found.same_pairs),
        ("  with another label", found.contradictions),
        (f"texts over {LONG_TEXT:,} characters", found.long_texts),
        ("texts with invisible or control characters", found.odd_texts),
    ):
        if count:
            table.add_row(name, f"{count:,}")
    return table


def _spread(table: Table, name: str, count: str, spread, format: str) -> None:
    values = () if spread is None else (spread.least, spread.lower, spread.median, spread.upper, spread.most)
    table.add_row(name, count, *(f"{value:{format}}" for value in values))
