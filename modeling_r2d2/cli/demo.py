"""`r2d2 demo`: the whole story in one command."""

from .demo_settings import DemoSettings


def demo(settings: DemoSettings) -> None:
    """Pre-train a small R2D2 on emoji pictures and their Chinese names, evaluate it on unseen vendors, show it."""
    from .demo_run import run_demo

    run_demo(settings)
