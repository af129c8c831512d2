"""The README's pictures from a run of the demo: its contact sheet and training curves, at the README's width.

    python benchmarks/readme_figures.py runs/demo [--output docs/images]

The contact sheet shows pictures of the first test vendor alone: Twemoji, CC BY 4.0, named beside it.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image

WIDTH = 1200


def shrink(source: Path, target: Path) -> None:
    """At most `WIDTH` pixels wide, 256 colours."""
    image = Image.open(source).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    options = parser.parse_args(argv)
    for name in ("contact_sheet.png", "training_curves.png"):
        shrink(options.run / name, options.output / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
