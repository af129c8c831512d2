"""Reliability of match probabilities as a drawing."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

from .drawings import save_drawing


class Curve(Protocol):
    """A reliability diagram: mean probability and true share of each bin, and the expected calibration error."""

    @property
    def probability(self) -> Sequence[float]: ...
    @property
    def true_share(self) -> Sequence[float]: ...
    @property
    def error(self) -> float: ...


def reliability_plot(curves: Mapping[str, Curve], path: str | PathLike, title: str = "Reliability") -> Path:
    """Draw reliability diagrams, a panel for each name; the diagonal is perfect calibration.

    Args:
        curves: name -> what `reliability` found.
        path: of the PNG; folders are made.
        title: above the panels.

    Returns:
        the path. Needs matplotlib, of the extra `[train]`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(curves), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (name, curve) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(1, len(curves), number)
        axes.plot([0, 1], [0, 1], color="#7b8794", linewidth=1, linestyle="--")
        axes.plot(curve.probability, curve.true_share, marker="o", color="#1a66a8")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="match probability", ylabel="share of true pairs" if number == 1 else "")
        axes.set_title(f"{name}\nexpected calibration error {curve.error:.3f}", fontsize=10)
    figure.suptitle(title)
    return save_drawing(figure, path, dpi=150)
