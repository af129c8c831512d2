"""What is not finite is found and named: tensors, weights, results, JSON, settings."""

import json
import time

import numpy as np
import pytest
import torch
from torch import nn

from modeling_r2d2.finite import (
    NotFiniteError,
    is_finite,
    names_not_finite,
    require_finite,
    require_finite_weights,
    to_json,
)
from modeling_r2d2.ranges_r2d2 import require_number


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_tensors_of_every_type(dtype, value):
    tensor = torch.ones(5, 7).to(dtype)
    assert is_finite(tensor)
    tensor.view(-1)[17] = torch.tensor(value).to(dtype)
    assert is_finite(tensor) == (dtype == torch.float8_e4m3fn and bool(tensor.float().isfinite().all()))


def test_large_numbers_are_finite_though_their_sum_is_not():
    assert is_finite(torch.full((9,), torch.finfo(torch.float32).max))
    assert is_finite(torch.full((9,), torch.finfo(torch.float16).max, dtype=torch.float16))
    assert is_finite(torch.tensor([1, 2]))
    assert is_finite(torch.empty(0))
    assert is_finite(torch.empty(3, device="meta"))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))


def test_names_keep_their_order():
    bad = torch.tensor([1.0, float("nan")])
    assert names_not_finite([("a", bad), ("b", torch.ones(2)), ("c", bad)]) == ["a", "c"]


def test_weights_name_place_and_tensor():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    require_finite_weights(model, "a/folder")
    model[1].running_var[1] = float("inf")  # a buffer
    with pytest.raises(NotFiniteError, match=r"^a/folder: 1 of 7 weights is not finite .* 1\.running_var"):
        require_finite_weights(model, "a/folder")
    with pytest.raises(ValueError, match="such as x"):
        require_finite_weights({"x": torch.tensor([float("nan")]), "note": "text"}, "file.pth")


def test_results_name_the_row():
    scores = torch.tensor([[1.0, 2.0], [float("nan"), 0.0]])
    require_finite(scores[0], "scores")
    require_finite(np.arange(3), "places")
    with pytest.raises(NotFiniteError, match=r"scores: 1 of 2 results is not finite \(NaN or infinity\), first b\.jpg"):
        require_finite(scores, "scores", ["a.jpg", "b.jpg"])
    with pytest.raises(NotFiniteError, match="first 1"):
        require_finite(scores.numpy(), "scores")
    with pytest.raises(NotFiniteError, match=r"metrics: r1 is nan.* \(1 more"):
        require_finite({"r1": float("nan"), "r5": np.float32("inf"), "note": "text", "r10": 3}, "metrics")


def test_json_holds_no_nan():
    assert json.loads(to_json({"名": [1.5, None]}, "x.json")) == {"名": [1.5, None]}
    with pytest.raises(NotFiniteError, match=r"x\.json: hits\[1\]\.score is nan"):
        to_json({"hits": [{"score": 1.0}, {"score": float("nan")}]}, "x.json", indent=2)
    with pytest.raises(TypeError):
        to_json({"a": object()}, "x.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.1, 1, "0.5", None, True])
def test_numbers_out_of_their_range(value):
    with pytest.raises(ValueError, match=r"^decay is .*; it must be a finite number at least 0 and below 1$"):
        require_number("decay", value, least=0, below=1)
    require_number("decay", 0.5, least=0, below=1)
    require_number("decay", np.float32(0.5), least=0, below=1)


def test_counts_are_whole():
    require_number("steps", 3, least=1, whole=True)
    require_number("steps", np.int64(3), least=1, whole=True)
    with pytest.raises(ValueError, match=r"steps is 2\.5; it must be a whole number at least 1"):
        require_number("steps", 2.5, least=1, whole=True)


def test_the_check_of_a_large_model_is_quick():
    weights = {str(place): torch.zeros(2**20) for place in range(32)}
    require_finite_weights(weights, "warm")
    start = time.perf_counter()
    require_finite_weights(weights, "warm")
    assert time.perf_counter() - start < 0.5  # 134 MB; some 20 ms on one core
