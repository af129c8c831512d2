"""What is not finite is found and named: tensors, weights, results, JSON, settings."""

import json
import re
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modeling_r2d2 import (
    R2D2ImageTextMatchingPipeline,
    R2D2Model,
    R2D2Processor,
    R2D2Retriever,
    R2D2ZeroShotImageClassificationPipeline,
    convert_official_checkpoint,
    convert_wukong_checkpoint,
)
from modeling_r2d2.cli import main
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.evaluation.results import EvaluationResult
from modeling_r2d2.inference.calibration import Calibration
from modeling_r2d2.inference.encoding import encode_images
from modeling_r2d2.inference.finite import (
    NotFiniteError,
    is_finite,
    names_not_finite,
    require_finite,
    require_finite_file,
    require_finite_weights,
    to_json,
)
from modeling_r2d2.inference.matching import matching_metrics
from modeling_r2d2.model.ranges_r2d2 import require_number
from modeling_r2d2.search.building import IndexBuilder
from tests.helpers import tiny_image, tiny_model, tiny_processor
from tests.integrations.conversion.official_files import official_tensors, wide_config


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


@pytest.mark.parametrize("value", [2e18, -1e30])
def test_weights_whose_norms_overflow(value, tmp_path):
    """What is divided by such a norm is 0, which is finite and means nothing."""
    model = nn.Linear(3, 3)
    model.weight.data[1, 1] = value
    with pytest.raises(
        NotFiniteError, match=r"1 of 2 weights is not finite \(NaN, infinity or beyond 1e\+18\), .*weight"
    ):
        require_finite_weights(model, "a/folder")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(NotFiniteError, match="such as weight"):
        require_finite_file(tmp_path / "model.safetensors")
    model.weight.data[1, 1] = 1e17
    require_finite_weights(model, "a/folder")


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
    start = time.process_time()
    require_finite_weights(weights, "warm")
    assert time.process_time() - start < 0.5  # 134 MB; some 20 ms on one core


# -- verbs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model folder, one whose towers give NaN, and pictures."""
    root = tmp_path_factory.mktemp("finite")
    for name in ("good", "bad"):
        model = tiny_model()
        if name == "bad":
            model.vision_projection.weight.data[0, 0] = float("nan")
        model.save_pretrained(root / name)
        tiny_processor().save_pretrained(root / name)
    (root / "pictures").mkdir()
    for number in range(3):
        tiny_image(number).save(root / "pictures" / f"{number}.png")
    lines = [json.dumps({"image": f"pictures/{n}.png", "text": t}) for n, t in enumerate("猫狗马")]
    (root / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def overflowing(root):
    """A loaded model whose weights are finite, and whose results are not."""
    model = tiny_model()
    model.vision_projection.weight.data.fill_(3e38)
    return model, tiny_processor()


@pytest.mark.parametrize(
    "verb",
    [
        ("index", "pictures", "--output", "index", "--model", "bad"),
        ("match", "pictures/0.png", "猫", "--model", "bad"),
        ("evaluate", "--model", "bad", "--task", "retrieval", "--data", "pairs.jsonl"),
        ("pretrain", "--model", "bad", "--data", "pairs.jsonl", "--output", "run", "--batch-size", "2", "--steps", "1"),
        ("card", "bad"),
        ("push", "bad", "owner/name", "--dry-run"),
        ("calibrate", "bad", "--data", "pairs.jsonl"),
        ("export", "bad", "--output", "onnx"),
    ],
    ids=lambda verb: verb[0],
)
def test_verbs_refuse_weights_that_are_not_finite(folders, verb, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    before = sorted(path.name for path in folders.iterdir())
    monkeypatch.setattr("sys.argv", ["r2d2", *verb])
    with pytest.raises(SystemExit) as stop:
        main()
    output = " ".join("".join(capsys.readouterr()).split())
    assert stop.value.code, output
    assert "not finite" in output, output
    assert "vision_projection.weight" in output
    assert "Traceback" not in output
    made = sorted(path.name for path in folders.iterdir())
    assert [name for name in made if name not in before and any((folders / name).rglob("*.safetensors"))] == []


def test_results_of_a_loaded_model_that_overflows(folders):
    model, processor = overflowing(folders)
    images = sorted((folders / "pictures").glob("*.png"))
    with pytest.raises(NotFiniteError, match=r"picture embeddings of R2D2Model: 3 of 3 .*first .*0\.png"):
        encode_images(model, processor, images)
    with pytest.raises(NotFiniteError, match="picture embeddings"):
        IndexBuilder(model, processor, folders / "index").add(folders / "pictures")
    with pytest.raises(NotFiniteError, match="picture embeddings"):
        evaluate_retrieval(model, processor, images, ["猫", "狗", "马"])
    with pytest.raises(ValueError, match="scores are not finite"):
        R2D2ZeroShotImageClassificationPipeline(
            model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor
        )(tiny_image(), candidate_labels=["猫", "狗"])


@pytest.mark.parametrize("ranker", ["text_image_match_head", "image_text_match_head"])
def test_match_probabilities_that_are_not_finite(ranker, folders):
    model = tiny_model()
    getattr(model, ranker).weight.data.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="match"):
        R2D2Retriever(model, tiny_processor()).match(tiny_image(), "猫")
    processor = tiny_processor()
    pipe = R2D2ImageTextMatchingPipeline(
        model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor
    )
    with pytest.raises(ValueError, match="scores are not finite"):
        pipe((tiny_image(), "猫"))


def test_a_checkpoint_with_nan_is_not_converted(tmp_path):
    torch.save({"model": {"temp": torch.tensor(float("nan"))}}, tmp_path / "x.pth")
    with pytest.raises(NotFiniteError, match=r"x\.pth: 1 of 1 weights is not finite .* temp"):
        convert_official_checkpoint(tmp_path / "x.pth")
    with pytest.raises(NotFiniteError, match=r"x\.pth"):
        convert_wukong_checkpoint(tmp_path / "x.pth")


def test_a_whole_checkpoint_with_one_nan_is_not_converted(tmp_path):
    model = R2D2Model(wide_config())
    tensors = official_tensors(model)
    name = next(name for name in tensors if name.startswith("visual_encoder.encoder"))
    tensors[name].view(-1)[0] = float("nan")
    torch.save({"model": tensors}, tmp_path / "x.pth")
    with pytest.raises(NotFiniteError, match=rf"x\.pth: 1 of \d+ weights is not finite .* {re.escape(name)}"):
        convert_official_checkpoint(tmp_path / "x.pth", model.config)


def test_a_calibration_of_nan(tmp_path):
    good = {"method": "platt", "slope": 1.0, "intercept": 0.0, "true_share": 0.5, "pairs": 9, "held_out": {"platt": -1}}
    Calibration(**good)
    for name, value in (("slope", float("nan")), ("intercept", float("inf")), ("true_share", 1.5), ("slope", -1.0)):
        (tmp_path / "calibration.json").write_text(json.dumps({**good, name: value}))
        with pytest.raises(ValueError, match=rf"calibration\.json is no calibration \({name} is"):
            Calibration.load(tmp_path)


@pytest.mark.parametrize("value", [[0.0, 1.0, 1.0], [float("nan")] * 3])
def test_pixels_are_not_divided_by_nothing(value):
    with pytest.raises(ValueError, match="image_std of the image processor is"):
        R2D2Processor.build(tiny_processor().tokenizer, image_std=value)


def test_metrics_of_an_evaluation():
    with pytest.raises(NotFiniteError, match="retrieval of m on d: r1 is nan"):
        EvaluationResult("retrieval", "d", "m", {"r1": float("nan")})
    assert "threshold" not in matching_metrics([0.9, 0.8, 0.1], [0, 0, 1])[0]  # calling nothing a match is best


def test_sentence_transformers(folders):
    from modeling_r2d2.integrations.sentence_transformers import sentence_transformer

    encoder = sentence_transformer(folders / "good")
    encoder[0].model.vision_projection.weight.data.fill_(3e38)
    with pytest.raises(NotFiniteError, match="embeddings of .*good"):
        encoder.encode([tiny_image()])
