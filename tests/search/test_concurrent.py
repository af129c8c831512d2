"""Readers while another process changes the index: every opening gives one whole state, and an open one stays."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from modeling_r2d2 import R2D2Retriever
from modeling_r2d2.search import ImageIndex
from modeling_r2d2.search.building import IndexBuilder
from modeling_r2d2.search.manifest import Manifest
from modeling_r2d2.search.vectors import FaissVectors
from tests.search.conftest import save_images

pytest.importorskip("faiss")  # of the extra [retrieval]

WRITER = """
import sys, time
from modeling_r2d2 import R2D2Model, R2D2Processor
from modeling_r2d2.search.building import IndexBuilder
folder, pictures, root, seconds = sys.argv[1:]
model, processor = R2D2Model.from_pretrained(folder), R2D2Processor.from_pretrained(folder)
print("ready", flush=True)
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    for kind in ("hnsw", "ivf"):
        builder = IndexBuilder(model, processor, root, vectors=kind, batch_size=4, part_size=4)
        builder.remove(["a.png", "e.PNG"])
        builder.add(pictures)
"""


def test_opening_while_a_writer_changes_it(model, processor, model_folder, images, tmp_path):
    """By hand for longer: SOAK=60. Without care one opening in fifty meets a file that is just being replaced."""
    root = tmp_path / "index"
    IndexBuilder(model, processor, root, vectors="hnsw", batch_size=4, part_size=4).add(images)
    early = R2D2Retriever.open(root, model, processor)
    first = early.search("一只猫", top_k=9)[0].to_dict()
    command = [sys.executable, "-c", WRITER, model_folder, images, root, os.environ.get("SOAK", "3")]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    states, opened = set(), 0
    while writer.poll() is None:
        late = R2D2Retriever.open(root, model, processor, verify=opened % 2 == 0)
        found = late.search("一只猫", top_k=9, candidates=0)[0]
        assert len(found.hits) == len(late.index) == late.vectors.count
        states.add(len(late.index))
        opened += 1
    assert writer.returncode == 0
    print(f"{opened} openings")
    assert opened > 10
    assert states == {7, 9}
    assert early.search("一只猫", top_k=9)[0].to_dict() == first


@pytest.mark.parametrize(("moment", "changes"), [(Manifest, 2), (Manifest, 12), (FaissVectors, 1)])
def test_a_writer_publishes_in_an_opening(model, processor, images, tmp_path, monkeypatch, moment, changes):
    """After the manifest was read, at many tries in a row, and before FAISS reads its file."""
    root = tmp_path / "index"
    builder = IndexBuilder(model, processor, root, vectors="hnsw", batch_size=4, part_size=4)
    builder.add(images)
    load, left = moment.load, [changes]

    def disturbed(*args, **kwargs):
        loaded = load(*args, **kwargs) if moment is Manifest else None
        if left[0]:
            left[0] -= 1
            with monkeypatch.context() as writer:
                writer.setattr(moment, "load", load)
                if "a.png" in ImageIndex(root).place_of:
                    builder.remove(["a.png"])
                else:
                    builder.add(images)
        return loaded or load(*args, **kwargs)

    monkeypatch.setattr(moment, "load", disturbed)
    opened = R2D2Retriever.open(root, model, processor)
    assert left[0] < changes  # most changes leave the files of the state before where they are
    found = opened.search("一只猫", top_k=9, candidates=0)[0]
    assert len(found.hits) == len(opened.index) == opened.vectors.count
    assert sorted(hit.id for hit in found.hits) == sorted(opened.index.place_of)


def test_an_index_of_many_parts_needs_few_handles(model, processor, tmp_path):
    images = save_images(tmp_path / "many", [f"{number:03}.png" for number in range(60)])
    IndexBuilder(model, processor, tmp_path / "index", batch_size=1, part_size=1).add(images)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 20, hard))
    try:
        index = ImageIndex(tmp_path / "index")
        assert np.concatenate(list(index.all_embeds())).shape == (60, model.config.projection_dim)
        assert not os.path.isdir("/proc/self/fd") or len(os.listdir("/proc/self/fd")) <= open_now
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
