"""Training curves from a Trainer's log history."""

import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from .drawings import save_drawing

Point = tuple[float, float]

_INK = "#1f2933"
_COLORS = ("#2b6cb0", "#dd6b20", "#1a9850", "#805ad5", "#b83280", "#718096")
_LOSSES = {  # name in the log: label, colour
    "loss": ("total", _INK),
    "loss_gcpr": ("GCPR, pre-ranking", "#2b6cb0"),
    "loss_tgd": ("TgD, distillation", "#805ad5"),
    "loss_fgd": ("FgD, distillation", "#b83280"),
    "loss_fgr": ("FGR, ranking", "#1a9850"),
    "loss_mlm": ("MLM", "#dd6b20"),
}
_LOSS_COLORS = dict(_LOSSES.values())


def training_curves(
    log_history: Iterable[Mapping[str, object]], path: str | PathLike, title: str | None = None
) -> Path:
    """Draw the loss parts, recall@1 and images per second over the steps as a PNG.

    Args:
        log_history: `trainer.state.log_history`, or any dictionaries with `step` and numbers. Drawn are `loss`
            and `loss_*`, everything that ends in `_r1` (percent), and `images_per_second`; what is absent is
            left out.
        path: of the PNG; folders are made.
        title: above the panels.

    Raises:
        ValueError: nothing that can be drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    series = _series(log_history)
    losses = {_LOSSES.get(n, (n,))[0]: p for n, p in series.items() if n == "loss" or n.startswith("loss_")}
    recalls = {_recall_label(n): p for n, p in series.items() if n.endswith("_r1")}
    speed = {n: p for n, p in series.items() if n == "images_per_second"}
    panels = [
        panel
        for panel in (
            ("training loss", "loss", losses, False),
            ("held-out recall@1", "percent", recalls, True),
            ("speed", "images per second", speed, True),
        )
        if panel[2]
    ]
    if not panels:
        raise ValueError("the log history has neither loss, nor recall (…_r1), nor images_per_second to draw")

    figure = Figure(figsize=(4.6 * len(panels), 3.5), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, *panel)
    if title:
        figure.suptitle(title, fontsize=12, color=_INK)
    return save_drawing(figure, path)


def _series(log_history: Iterable[Mapping[str, object]]) -> dict[str, list[Point]]:
    """Every logged number as points (step, value), in order of first appearance."""
    series: dict[str, list[Point]] = {}
    for entry in log_history:
        step = entry.get("step")
        if not isinstance(step, (int, float)):
            continue
        for name, value in entry.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                series.setdefault(name, []).append((step, value))
    return series


def _recall_label(name: str) -> str:
    """`eval_twitter_text_to_image_r1` as `twitter text → image`."""
    name = re.sub(r"^eval_|_r1$", "", name)
    return name.replace("text_to_image", "text → image").replace("image_to_text", "image → text").replace("_", " ")


def _draw(axes, title: str, unit: str, series: Mapping[str, Sequence[Point]], from_zero: bool):
    for number, (label, points) in enumerate(series.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            values,
            label=label,
            color=_LOSS_COLORS.get(label, _COLORS[number % len(_COLORS)]),
            linewidth=2.2 if label == "total" else 1.5,
            marker="o" if len(points) < 25 else None,
            markersize=3.5,
        )
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel(unit, fontsize=9)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.tick_params(labelsize=8.5, colors="#52606d")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8.5)
