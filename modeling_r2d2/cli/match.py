"""`r2d2 match`: how likely texts belong to a picture."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, MaxPixels, TrustRemoteCode
from .terminal import Terminal


def match(
    image: Annotated[Path, typer.Argument(help="A picture.")],
    texts: Annotated[list[str], typer.Argument(help="One text or several.")],
    model: Annotated[str, typer.Option(help="Model folder or name.")] = ...,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    word: Annotated[str | None, typer.Option(help="Of the first text: draw where the ranker looks for it …")] = None,
    heat_map: Annotated[Path | None, typer.Option(help="… into this PNG; without --word for the whole text.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Use the model's calibration, if it has one.")] = True,
    device: Device = None,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Match probability and cosine of a picture with texts, most probable first."""
    from ..figures.drawings import refuse_foreign_drawing, save_drawing
    from ..inference.calibration import Calibration
    from ..inference.models import load_model
    from ..search.retriever import R2D2Retriever
    from .notes import note_unknown

    refuse_foreign_drawing(heat_map)
    network, processor = load_model(model, device=device)
    calibration = Calibration.of_model(model, network) if calibrated else None
    retriever = R2D2Retriever(network, processor, calibration=calibration)
    found = retriever.match(image, texts)
    note_unknown(processor.tokenizer, network.config, texts)
    rows = [
        {"text": text, "match_probability": probability, "cosine": cosine}
        for text, probability, cosine in zip(
            texts, found.match_probability[0].tolist(), found.cosine[0].tolist(), strict=True
        )
    ]
    rows.sort(key=lambda row: -row["match_probability"])
    if as_json:
        from ..inference.finite import to_json

        typer.echo(to_json(rows, "match", indent=2))
    else:
        console = Terminal()
        table = console.table("match probability", "cosine", "text")
        for row in rows:
            table.add_row(f"{row['match_probability']:.4f}", f"{row['cosine']:.4f}", row["text"])
        console.print_table(table)
        console.print("calibrated" if calibration else "not calibrated (see `r2d2 calibrate`)", style="dim")
    if word is not None and heat_map is None:
        raise ValueError("--word needs a file to draw into: --heat-map FILE.png")
    if heat_map is not None:
        save_drawing(retriever.heat_map(image, texts[0], word).overlay(), heat_map)
