"""The demo page as a Hugging Face Space.

Beside this file: `model/`, a model folder, and `photos/`, the pictures to search in (without them there is no search).
The index of the pictures is made when the Space starts. Variables of the Space name other places: R2D2_MODEL (a folder
or a model on the Hub), R2D2_PHOTOS, R2D2_TEXT_TO_IMAGE; R2D2_EXAMPLES are queries to click on, with commas between.
"""

import os
from pathlib import Path

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.app import AppModels, build_app, launch_app

HERE = Path(__file__).parent
MODEL = os.environ.get("R2D2_MODEL", str(HERE / "model"))
PHOTOS = Path(os.environ.get("R2D2_PHOTOS", HERE / "photos"))
TEXT_TO_IMAGE = os.environ.get("R2D2_TEXT_TO_IMAGE")
EXAMPLES = [text for text in os.environ.get("R2D2_EXAMPLES", "").split(",") if text]


def main() -> None:
    """Index the pictures, or what is new among them, and serve the page."""
    index = None
    if PHOTOS.is_dir():
        index = PHOTOS.with_name(f"{PHOTOS.name}.index")
        R2D2Retriever.build(PHOTOS, MODEL, index)
    launch_app(build_app(AppModels.open(MODEL, index, TEXT_TO_IMAGE), EXAMPLES))


if __name__ == "__main__":
    main()
