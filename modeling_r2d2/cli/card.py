"""`r2d2 card`: the card of a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..processing.files.settings import setting
from .options import Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class CardSettings(Trusting):
    """What `r2d2 card` takes."""

    model: Path = setting(help="The folder of the model.", argument=True)
    language: Literal["en", "zh"] = setting("en", "The language of the card.")
    output: Path | None = setting(None, "Write the card here. The default is README.md in the folder.")
    overwrite: bool = setting(False, "Replace a card that is there.")
    license: str | None = setting(None, "The license of the weights.")
    limits: list[str] = setting([], "A sentence for the section of limits. It can be repeated.", "--limit")
    results: list[Path] = setting([], "A JSON file that `r2d2 evaluate` wrote for this folder. It can be repeated.")
    data: list[str] = setting(
        [], "Training data: NAME or NAME=LICENSE. It can be repeated. The default is what the run recorded."
    )
    base_model: str | None = setting(
        None, "The Hub name of what training began with. The default is what the run recorded."
    )
    repo: str | None = setting(None, "How the code of the card calls the model: owner/name.")
    measure_speed: bool = setting(False, "Measure the speed here, which takes some seconds.")
    speed: Path | None = setting(None, "Take the speed from this JSON file, which --speed-output wrote.")
    speed_output: Path | None = setting(None, "Keep the speed that --measure-speed found in this file.")
    device: str = setting("cpu", "The device of --measure-speed.")


def card(settings: CardSettings) -> None:
    """Write a card from what the folder, measurements and you say; what nobody said is stated as unknown."""
    from ..hub_cards.licenses import DataSource
    from ..hub_cards.model import model_card, read_results, write_card
    from ..hub_cards.speed import Speed, measure_speed
    from ..inference.finite import to_json
    from ..processing.files.writing import refuse_output, write_text

    model, output = settings.model, settings.output
    refuse_output(settings.speed_output, *settings.results)
    if settings.measure_speed and settings.speed is not None:
        raise ValueError("--measure-speed or --speed, not both")
    refuse_existing_card(output or model / "README.md", settings.overwrite)
    found = [result for path in settings.results for result in read_results(path)]
    if not settings.results and (model / "results.json").is_file():
        found = read_results(model / "results.json")  # of the demo
    rates = measure_speed(model, settings.device) if settings.measure_speed else None
    if settings.speed is not None:
        rates = Speed.read(settings.speed)
    if rates is not None and settings.speed_output is not None:
        write_text(settings.speed_output, to_json(rates.to_dict(), settings.speed_output, indent=2) + "\n")
    made = model_card(
        model,
        language=settings.language,
        results=found,
        data=[DataSource.parse(each) for each in settings.data],
        license=settings.license,
        base_model=settings.base_model,
        speed=rates,
        repo=settings.repo,
        limits=settings.limits,
    )
    if output is None:
        written = write_card(made, model, found, settings.overwrite)
    else:
        write_text(output, str(made))
        written = [output]
    for path in written:
        Terminal().print(f"written: {path}")


def refuse_existing_card(path: Path, overwrite: bool) -> None:
    """Raise where a card is there that was not to be replaced.

    Raises:
        FileExistsError: names it.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already: --overwrite replaces it")
