"""`r2d2 demo`: the whole story in one command."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the model, its card and the pictures.")] = Path("runs/demo"),
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; default: the recipe's.")] = None,
    seed: int = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Data loader processes.")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Evaluate on these vendors instead of Twitter and Windows.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
):
    """Pre-train a small R2D2 on emoji pictures and their Chinese names, evaluate it on unseen vendors, show it."""
    from .demo_run import DemoSettings, run_demo

    chosen = {"steps": steps, "workers": workers, "held_out": tuple(held_out) if held_out else None}
    settings = {name: value for name, value in chosen.items() if value is not None}
    run_demo(DemoSettings(output=output, seed=seed, overwrite=overwrite, **settings))
