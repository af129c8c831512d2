"""The README's pictures from a run of the demo: its contact sheet and training curves, and a search by its model in an
index of the same pictures, at the README's width.

    python benchmarks/readme_figures.py runs/demo [--output docs/images]

The contact sheet shows pictures of the first test vendor alone: Twemoji, CC BY 4.0, named beside it.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from modeling_r2d2.processing.datasets.emoji import EmojiPairs

WIDTH = 1200
QUERIES = ("狐狸", "向日葵", "瓢虫")


def shrink(source: Path, target: Path) -> None:
    """At most `WIDTH` pixels wide, 256 colours."""
    image = Image.open(source).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def search_sheet(model: Path, folder: Path) -> Path:
    """Three queries in an index of the test vendor's pictures, by the commands that the README shows."""
    emoji = EmojiPairs(["twitter"])
    (folder / "photos").mkdir()
    for place, name in enumerate(emoji.names()):
        emoji.image(place).save(folder / "photos" / f"{name}.png")
    commands = (
        ["index", str(folder / "photos"), "--model", str(model), "--output", str(folder / "photos.index")],
        ["search", str(folder / "photos.index"), *QUERIES, "--top-k", "6"],
    )
    commands[1].extend(["--format", "sheet", "--output", str(folder / "found.png")])
    for command in commands:
        subprocess.run([sys.executable, "-m", "modeling_r2d2.cli", *command], check=True)
    return folder / "found.png"


def main(argv: list[str] | None = None) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    options = parser.parse_args(argv)
    for name in ("contact_sheet.png", "training_curves.png"):
        shrink(options.run / name, options.output / name)
    with tempfile.TemporaryDirectory() as folder:
        shrink(search_sheet(options.run, Path(folder)), options.output / "search.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
