"""`r2d2 card`: the card of a model folder or of a data set."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Encoding, ImageColumn, TextColumn, TrustRemoteCode, check_device, columns_of
from .terminal import Terminal


def card(
    source: Annotated[Path, typer.Argument(help="Model folder; with --dataset: pairs (file or folder).")],
    dataset: Annotated[
        bool, typer.Option("--dataset", help="SOURCE is a data set: decode and count all of it.")
    ] = False,
    language: Annotated[str, typer.Option(help="Of the card: en or zh.")] = "en",
    output: Annotated[
        Path | None, typer.Option(help="Write the card here; default README.md in SOURCE, or beside the data file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a card that is there.")] = False,
    license: Annotated[str | None, typer.Option(help="Of the weights, or of the data set's texts.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="A sentence for the section of limits; repeatable.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="JSON of `r2d2 evaluate` on this folder; repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Training data: NAME or NAME=LICENCE; repeatable. Default: as the run recorded."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub name of what training began with. Default: as the run recorded.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="How the card's code calls the model: owner/name.")] = None,
    measure_speed: Annotated[bool, typer.Option("--measure-speed", help="Measure it here, some seconds.")] = False,
    speed: Annotated[Path | None, typer.Option(help="Or take it from this JSON, by --speed-output.")] = None,
    speed_output: Annotated[Path | None, typer.Option(help="Keep what --measure-speed found.")] = None,
    device: Annotated[str, typer.Option(help="Of --measure-speed.", callback=check_device)] = "cpu",
    name: Annotated[str | None, typer.Option(help="--dataset: its name; default: the file's.")] = None,
    origin: Annotated[str | None, typer.Option(help="--dataset: where pictures and texts come from.")] = None,
    image_license: Annotated[str | None, typer.Option(help="--dataset: of the pictures.")] = None,
    format: Annotated[str | None, typer.Option(help="--dataset: where the suffix does not tell.")] = None,
    split: Annotated[str | None, typer.Option(help="--dataset: which split.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
) -> None:
    """Write a card from what the folder, measurements and you say; what nobody said is stated as unknown."""
    from ..processing.files.writing import refuse_output, write_text

    console = Terminal()
    refuse_output(speed_output, *(results or ()))
    columns = columns_of(image_column, text_column)
    reading = {"format": format, "split": split, "columns": columns, "encoding": encoding}
    if dataset:
        given = {"results": results, "data": data, "base_model": base_model, "repo": repo, "speed": speed}
        _refuse({**given, "measure_speed": measure_speed or None}, "a model's card")
        path = output or (source if source.is_dir() else source.parent) / "README.md"
        refuse_output(path, source if source.is_file() else None)
        _refuse_existing(path, overwrite)
        text = _dataset_card(source, language, license, image_license, origin, name, reading, limit, path)
        write_text(path, text)
        written = [path]
    else:
        given = {"name": name, "origin": origin, "image_license": image_license, **reading}
        _refuse(given, "a data set's card (--dataset)")
        from ..hub_cards.licenses import DataSource
        from ..hub_cards.model import model_card, read_results, write_card
        from ..hub_cards.speed import Speed
        from ..hub_cards.speed import measure_speed as measure

        if measure_speed and speed is not None:
            raise ValueError("--measure-speed or --speed, not both")
        _refuse_existing(output or source / "README.md", overwrite)
        found = [result for path in results or () for result in read_results(path)]
        if not results and (source / "results.json").is_file():
            found = read_results(source / "results.json")  # of the demo
        rates = measure(source, device) if measure_speed else None
        if speed is not None:
            rates = Speed.read(speed)
        if rates is not None and speed_output is not None:
            from ..inference.finite import to_json

            write_text(speed_output, to_json(rates.to_dict(), speed_output, indent=2) + "\n")
        made = model_card(
            source,
            language=language,
            results=found,
            data=[DataSource.parse(each) for each in data or ()],
            license=license,
            base_model=base_model,
            speed=rates,
            repo=repo,
            limits=limit or (),
        )
        if output is None:
            written = write_card(made, source, found, overwrite)
        else:
            write_text(output, str(made))
            written = [output]
    for path in written:
        console.print(f"written: {path}")


def _refuse(given: dict, what: str) -> None:
    given = {"image_column" if name == "columns" else name: value for name, value in given.items()}
    if names := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(names)} belong to {what}")


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already: --overwrite replaces it")


def _dataset_card(source, language, license, image_license, origin, name, reading, limit, path) -> str:
    from ..hub_cards.dataset import dataset_card
    from ..processing.datasets import load_pairs
    from ..processing.datasets.check import check_pairs

    pairs = load_pairs(str(source), **reading, max_error_rate=1.0, check_images="exists")
    shown = source.resolve()
    inside = shown.is_relative_to(path.resolve().parent)
    return str(
        dataset_card(
            check_pairs(pairs, sample=0),
            name=name or source.resolve().stem,
            path=shown.relative_to(path.resolve().parent).as_posix() if inside else source.name,
            language=language,
            license=license,
            image_license=image_license,
            origin=origin,
            reading=reading,
            limits=limit or (),
        )
    )
