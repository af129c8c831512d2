"""`r2d2 calibrate`: make the match probability mean what it says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..model.ranges_r2d2 import COUNT, SEED
from ..processing.files.settings import setting
from .options import Pairs, ReadingImages, Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class CalibrationSettings(Pairs, ReadingImages, Trusting):
    """What `r2d2 calibrate` takes."""

    model: Path = setting(help="The folder of the model. The calibration is stored in it.", argument=True)
    data: str = setting(
        help="Pairs that training has not seen, as `r2d2 pretrain` takes them but no shards, or 'demo'."
    )
    negatives: Literal["uniform", "hard"] = setting(
        "uniform", "How wrong pairs are drawn: at random, or hard ones as FGR draws them."
    )
    per_positive: int | None = setting(
        None, "Wrong pictures for each true pair. The default is 32, of hard ones 4.", bounds=COUNT
    )
    prior: float | None = setting(
        None, "The share of true pairs where the model will be used. The default is that of the pairs fitted."
    )
    method: Literal["temperature", "platt", "fused", "best"] = setting(
        "best",
        "What is fitted: one or two numbers of the log-odds, or with pre-ranking beside them (fused, for uniform wrong "
        "pairs). 'best' takes the one of highest held-out likelihood.",
    )
    test_data: str | None = setting(None, "Other pairs, to report the error on.")
    test_split: str | None = setting(None, "Which split of --test-data is read.")
    precision: float | None = setting(None, "Report the threshold that reaches this precision.")
    recall: float | None = setting(None, "Report the threshold that reaches this recall.")
    plot: Path | None = setting(None, "Draw the reliability into this PNG.")
    seed: int = setting(0, "Of the draws of wrong pairs.", bounds=SEED)


def calibrate(settings: CalibrationSettings) -> None:
    """Fit a calibration on held-out pairs, store it with the model, report its error before and after."""
    from ..figures.drawings import refuse_foreign_drawing
    from ..figures.reliability import reliability_plot
    from ..inference.calibrating import calibrate_model, load_gallery, measure
    from ..inference.calibration import Calibration, threshold_for

    console = Terminal()
    if settings.test_data is None and settings.test_split is not None:
        raise ValueError("--test-split is of the pairs to report on: name them with --test-data")
    reading = settings.reading()
    refuse_foreign_drawing(settings.plot)
    Calibration.refuse_foreign(settings.model)
    fitted, found = calibrate_model(
        settings.model,
        load_gallery(settings.data, **reading),
        negatives=settings.negatives,
        per_positive=settings.per_positive,
        prior=settings.prior,
        method=settings.method,
        seed=settings.seed,
        test=None
        if settings.test_data is None
        else load_gallery(settings.test_data, **{**reading, "split": settings.test_split}),
    )
    path = fitted.save(settings.model)
    console.print(f"stored in {path}")
    held_out = ", ".join(f"{name} {value:.4f}" for name, value in fitted.held_out.items())
    share = f"{fitted.true_share:.1%} of them true" + (f", prior {fitted.prior:.1%}" if fitted.prior else "")
    if fitted.similarity_slope is not None:
        console.print(
            f"weights: {fitted.similarity_slope:.3f} of cosine / temperature, {fitted.slope:.3f} of the ranker's "
            "log-odds; a search by the fused score orders by them"
        )
    console.print(f"{fitted.method} scaling on {fitted.pairs:,} pairs, {share}; held-out log-likelihood: {held_out}")
    curves = measure(found, fitted)
    if settings.plot is not None:
        reliability_plot(curves, settings.plot, title=f"{settings.model.name}: match probability")
    for name, curve in curves.items():
        console.print(f"expected calibration error {name}: {curve.error:.4f}")
    if settings.precision is not None or settings.recall is not None:
        best = threshold_for(found.calibrated(fitted), found.labels, settings.precision, settings.recall)
        console.print(
            f"accept from {best.probability:.4f}: precision {best.precision:.3f}, recall {best.recall:.3f} "
            f"(at {found.labels.float().mean():.1%} true pairs)"
        )
