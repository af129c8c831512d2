"""A folder of small pictures, some of them broken."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def png(color: int) -> bytes:
    """A 12 x 10 picture of noise, another one for every `colour`."""
    pixels = np.random.default_rng(color).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """`0.png` ... `4.png`; `half.png`, which is cut off; `text.png`, which is none. `missing.png` does not exist."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "half.png").write_bytes(png(9)[:150])
    (folder / "text.png").write_text("这不是图片")
    return folder
