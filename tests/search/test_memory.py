"""Memory while pictures are indexed and ranked is bounded by the size of one, not by how many a batch has."""

import os
import subprocess
import sys

import pytest

from tests.helpers import tiny_image

pytest.importorskip("faiss")  # of the extra [retrieval]

PEAKS = """
import resource, sys
from modeling_r2d2 import R2D2Model, R2D2Processor, R2D2Retriever
from modeling_r2d2.search.building import IndexBuilder
folder, small, large, root = sys.argv[1:]
model, processor = R2D2Model.from_pretrained(folder), R2D2Processor.from_pretrained(folder)
for pictures in (small, large):
    IndexBuilder(model, processor, f"{root}/{pictures[-5:]}.index").add(pictures)
    R2D2Retriever.open(f"{root}/{pictures[-5:]}.index", model, processor).search("猫")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_large_photographs(model_folder, tmp_path):
    """Ten of 24 megapixels, 96 MB each once decoded; all of them are in one batch, and all are candidates."""
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    tiny_image(0).save(tmp_path / "small" / "a.png")
    tiny_image(1).resize((6000, 4000)).save(tmp_path / "large" / "0.jpg")
    for number in range(1, 10):
        os.link(tmp_path / "large" / "0.jpg", tmp_path / "large" / f"{number}.jpg")
    command = [sys.executable, "-c", PEAKS, model_folder, tmp_path / "small", tmp_path / "large", tmp_path]
    peaks = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert int(peaks[1]) - int(peaks[0]) < 900, peaks
