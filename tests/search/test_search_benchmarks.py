"""The search benchmarks run on tiny sizes, and the contenders of `ranking` do what they are named after."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark as running it as a script would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in [path.stem for path in FOLDER.glob("[a-z]*.py")]:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["ranking", "indexing", "vector_search", "calibration"])
def test_quick_run_writes_both_tables(benchmark, name, tmp_path):
    pytest.importorskip("faiss")
    assert benchmark(name).main(["--quick", "--tables", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert figures["rows"]
    assert figures["checks"]
    assert "measures nothing" in (tmp_path / f"{name}.md").read_text("utf-8")


@torch.inference_mode()
def test_the_yardstick_and_the_fast_ranker_agree(benchmark):
    from modeling_r2d2 import R2D2Config, R2D2Model

    module = benchmark("ranking")
    torch.manual_seed(0)
    model = R2D2Model(R2D2Config(**module.TINY, initializer_range=0.3)).eval()
    ranker = module.FastRanker(model, 2)
    states = model.get_image_features(torch.randn(7, 3, 64, 64)).last_hidden_state
    text = model.get_text_features(torch.randint(5, 99, (1, 9))).last_hidden_state
    wanted = model.rank(text.expand(7, -1, -1), states).match_probability
    assert wanted.std() > 1e-3
    for kept in ({"states": states}, vars(ranker.prepare(states, keys_values=True))):
        kept = {name: tensor.contiguous() for name, tensor in kept.items()}
        torch.testing.assert_close(module.fast(ranker, text, 9, kept), wanted, atol=1e-5, rtol=0)
        some = module.fast(ranker, text, 9, kept, cascade=3)
        assert int(((some - wanted).abs() < 1e-5).sum()) == 3
    torch.testing.assert_close(module.plain(model, text, 9, states), wanted, atol=1e-5, rtol=0)
