"""Screenshots of the demo page for its guide: a search on a desk and on a phone, in the system's Chromium.

    python benchmarks/app_figures.py runs/demo [--output docs/images]

Searched are the pictures of the first test vendor: Twemoji, CC BY 4.0, named beside the screenshots.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from modeling_r2d2.processing.datasets.emoji import EmojiPairs

CLI = [sys.executable, "-m", "modeling_r2d2.cli"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
#: The page shows what is found for the first.
EXAMPLES = ("狐狸", "向日葵", "瓢虫", "足球")


@contextmanager
def served(model: Path, folder: Path) -> Iterator[str]:
    """The address of the page, searching the test vendor's pictures."""
    emoji = EmojiPairs(["twitter"])
    (folder / "photos").mkdir()
    for place, name in enumerate(emoji.names()):
        emoji.image(place).save(folder / "photos" / f"{name}.png")
    (folder / "demo").symlink_to(model.resolve())  # what the page calls the model, whatever its folder is called
    index = ["--output", folder / "photos.index", "--model", folder / "demo"]
    subprocess.run([*CLI, "index", folder / "photos", *index], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*CLI, "app", "--index", folder / "photos.index", "--port", str(port)]
    command += [option for text in EXAMPLES for option in ("--example", text)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "uploads")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        if not process.stdout.readline():
            raise RuntimeError("`r2d2 app` ended before it served the page: see its message above")
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def screenshot(browser: Browser, address: str, target: Path, width: int, height: int, scale: float) -> None:
    """The page after a search, `width` × `height` pixels of CSS, `scale` pixels of the picture each."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=scale, locale="zh-CN"
    )
    page = context.new_page()
    page.goto(address)
    button, gallery = page.locator("#search-button"), page.locator("#search-gallery img").first
    # first another query, as the first search of a process takes longer, and an empty one, which clears the page
    for text, shown in ((EXAMPLES[1], gallery), ("", page.locator(".r2d2-error")), (EXAMPLES[0], gallery)):
        page.locator("#query :is(textarea, input)").fill(text)
        button.click()
        shown.wait_for()
    page.mouse.move(0, 0)  # a button under the mouse has another colour
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(500)  # until the spinner has faded
    page.screenshot(path=target)
    context.close()


def reduce_colors(path: Path) -> None:
    """256 of them, chosen with care: a third of the size, and small coloured parts keep their colour."""
    image = Image.open(path).convert("RGB")
    image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    options = parser.parse_args(argv)
    executable = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if executable is None:
        parser.error("no Chromium on this machine: apt-get install chromium fonts-noto-cjk")
    flags = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--no-sandbox")  # which Chromium cannot have as root
    options.output.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(options.run, Path(folder)) as address,
        sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=executable, args=flags)
        for file, width, height, scale in (("app_search.png", 1100, 1180, 1), ("app_phone.png", 390, 1060, 1.5)):
            screenshot(browser, address, options.output / file, width, height, scale)
            reduce_colors(options.output / file)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
