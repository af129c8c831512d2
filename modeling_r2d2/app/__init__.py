"""The demo page: search, match probability, zero-shot labels and text-to-image in a browser, in Chinese and English.

Gradio is of the extra `[app]`.
"""

from .models import AppModels
from .page import build_app, launch_app

__all__ = ["AppModels", "build_app", "launch_app"]
