"""`r2d2 match`: how likely texts belong to a picture."""

from dataclasses import dataclass
from pathlib import Path

import typer

from ..processing.files.settings import setting
from .options import Computing, ReadingImages
from .terminal import Terminal


@dataclass(kw_only=True)
class MatchSettings(ReadingImages, Computing):
    """What `r2d2 match` takes."""

    image: Path = setting(help="A picture.", argument=True)
    texts: list[str] = setting(help="One text or several.", argument=True)
    model: str = setting(help="The folder or name of the model.")
    json: bool = setting(False, "Print JSON.")
    word: str | None = setting(None, "A part of the first text, whose place in the picture --heat-map shows.")
    heat_map: Path | None = setting(
        None, "Draw into this PNG where the ranker looks for --word, or without it for the whole first text."
    )
    calibrated: bool = setting(True, "Use the calibration of the model, if it has one.")


def match(settings: MatchSettings) -> None:
    """Match probability and cosine of a picture with texts, most probable first."""
    from ..figures.drawings import refuse_foreign_drawing, save_drawing
    from ..inference.calibration import Calibration
    from ..inference.models import load_model
    from ..search.retriever import R2D2Retriever
    from .notes import note_unknown

    refuse_foreign_drawing(settings.heat_map)
    network, processor = load_model(settings.model, device=settings.device)
    calibration = Calibration.of_model(settings.model, network) if settings.calibrated else None
    retriever = R2D2Retriever(network, processor, calibration=calibration)
    found = retriever.match(settings.image, settings.texts)
    note_unknown(processor.tokenizer, network.config, settings.texts)
    rows = [
        {"text": text, "match_probability": probability, "cosine": cosine}
        for text, probability, cosine in zip(
            settings.texts, found.match_probability[0].tolist(), found.cosine[0].tolist(), strict=True
        )
    ]
    rows.sort(key=lambda row: -row["match_probability"])
    if settings.json:
        from ..inference.finite import to_json

        typer.echo(to_json(rows, "match", indent=2))
    else:
        console = Terminal()
        table = console.table("match probability", "cosine", "text")
        for row in rows:
            table.add_row(f"{row['match_probability']:.4f}", f"{row['cosine']:.4f}", row["text"])
        console.print_table(table)
        console.print("calibrated" if calibration else "not calibrated (see `r2d2 calibrate`)", style="dim")
    if settings.word is not None and settings.heat_map is None:
        raise ValueError("--word needs a file to draw into: --heat-map FILE.png")
    if settings.heat_map is not None:
        save_drawing(retriever.heat_map(settings.image, settings.texts[0], settings.word).overlay(), settings.heat_map)
