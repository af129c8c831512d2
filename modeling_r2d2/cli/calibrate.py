"""`r2d2 calibrate`: make the match probability mean what it says."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Encoding, ImageColumn, MaxPixels, TextColumn, TrustRemoteCode, columns_of
from .terminal import Terminal


def calibrate(
    model: Annotated[Path, typer.Argument(help="Model folder; the calibration is stored in it.")],
    data: Annotated[
        str, typer.Option(help="Pairs that training has not seen (as `pretrain` takes them, but no shards), or 'demo'.")
    ],
    negatives: Annotated[str, typer.Option(help="'uniform', or 'hard': drawn as FGR draws.")] = "uniform",
    per_positive: Annotated[
        int | None, typer.Option(min=1, help="Wrong pictures for each true pair; default: 32, of hard ones 4.")
    ] = None,
    prior: Annotated[
        float | None, typer.Option(help="Share of true pairs where it will be used; default: of those fitted.")
    ] = None,
    method: Annotated[str, typer.Option(help="'temperature', 'platt', or 'best' by held-out likelihood.")] = "best",
    test_data: Annotated[str | None, typer.Option(help="Other pairs, to report the error on.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the data, where the suffix does not tell.")] = None,
    split: Annotated[str | None, typer.Option(help="Which split of a published set or a folder.")] = None,
    test_split: Annotated[str | None, typer.Option(help="Which split --test-data is.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Relative picture paths begin here.")] = None,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    encoding: Encoding = None,
    precision: Annotated[float | None, typer.Option(help="Report the threshold for this precision …")] = None,
    recall: Annotated[float | None, typer.Option(help="… or for this recall.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the reliability into this PNG.")] = None,
    seed: int = 0,
    max_pixels: MaxPixels = None,
    trust_remote_code: TrustRemoteCode = False,
):
    """Fit a calibration on held-out pairs, store it with the model, report its error before and after."""
    from ..figures.drawings import refuse_foreign_drawing
    from ..figures.reliability import reliability_plot
    from ..inference.calibrating import calibrate_model, load_gallery, measure
    from ..inference.calibration import Calibration, threshold_for

    console = Terminal()
    if test_data is None and test_split is not None:
        raise ValueError("--test-split is of the pairs to report on: name them with --test-data")
    reading = {"format": format, "image_root": image_root, "encoding": encoding}
    reading["columns"] = columns_of(image_column, text_column)
    refuse_foreign_drawing(plot)
    Calibration.refuse_foreign(model)
    fitted, found = calibrate_model(
        model,
        load_gallery(data, split=split, **reading),
        negatives=negatives,
        per_positive=per_positive,
        prior=prior,
        method=method,
        seed=seed,
        test=None if test_data is None else load_gallery(test_data, split=test_split, **reading),
    )
    path = fitted.save(model)
    console.print(f"stored in {path}")
    held_out = ", ".join(f"{name} {value:.4f}" for name, value in fitted.held_out.items())
    share = f"{fitted.true_share:.1%} of them true" + (f", prior {fitted.prior:.1%}" if fitted.prior else "")
    console.print(f"{fitted.method} scaling on {fitted.pairs:,} pairs, {share}; held-out log-likelihood: {held_out}")
    curves = measure(found, fitted)
    if plot is not None:
        reliability_plot(curves, plot, title=f"{model.name}: match probability")
    for name, curve in curves.items():
        console.print(f"expected calibration error {name}: {curve.error:.4f}")
    if precision is not None or recall is not None:
        probability, labels = found
        best = threshold_for(fitted(probability), labels, precision, recall)
        console.print(
            f"accept from {best.probability:.4f}: precision {best.precision:.3f}, recall {best.recall:.3f} "
            f"(at {labels.float().mean():.1%} true pairs)"
        )
