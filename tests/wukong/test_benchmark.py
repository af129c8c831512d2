"""The benchmark runs on tiny sizes, and its figures mean what it says."""

import importlib
import json
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """The script, imported as running it would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module("token_similarity")
    torch.set_num_threads(threads)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is reset through Linux's /proc"
)
def test_quick_run(benchmark, tmp_path, monkeypatch):
    fresh = benchmark.measure_fresh(size=16, chunk=4, rounds=1, threads=1)
    tokens = 2 * 16 * (benchmark.TOKENS + benchmark.LENGTH) * benchmark.WIDTH * 4  # and their gradients
    assert fresh["bytes"] > tokens
    assert fresh["seconds"] > 0
    # the other processes are spared here
    monkeypatch.setattr(benchmark, "measure_fresh", lambda **job: benchmark.measure_here(json.loads(json.dumps(job))))
    assert benchmark.main(["--quick", "--tables", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "token_similarity.json").read_text("utf-8"))
    assert [(row["batch"], row["products"]) for row in figures["rows"]] == [
        (size, name) for size in benchmark.QUICK_SIZES for name in (benchmark.CHUNKED, benchmark.DIRECT)
    ]
    assert "measures nothing" in (tmp_path / "token_similarity.md").read_text("utf-8")


def test_what_is_compared_is_the_same(benchmark):
    images = torch.nn.functional.normalize(torch.randn(5, 4, 8), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(6, 3, 8), dim=-1)
    mask = torch.arange(3) < torch.tensor([1, 2, 3, 3, 2, 1])[:, None]
    chunked = benchmark.compare_in_chunks(2)(images, texts, mask)
    torch.testing.assert_close(tuple(chunked), tuple(benchmark.compare_at_once(images, texts, mask)))
