"""The graphs compute what torch computes, at shapes they were not traced with; the folder is whole or not there."""

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from modeling_r2d2 import R2D2Config, R2D2Model, R2D2Processor, WukongConfig, export_onnx
from modeling_r2d2.cli import app
from modeling_r2d2.inference import onnx_ranker as ranker_weights
from modeling_r2d2.inference.onnx_manifest import OnnxManifest
from modeling_r2d2.integrations import onnx_export as folder
from modeling_r2d2.integrations.onnx_graphs import graphs_of, write_graph
from modeling_r2d2.processing.files.writing import is_partial, note_written
from tests.helpers import die, killed, tiny_image, tiny_model

IMAGES, TEXTS = (1, 2, 7), ((1, 2), (4, 9), (6, 16))


def _run(path, name: str, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    """By onnxruntime itself, with its default settings."""
    session = onnxruntime.InferenceSession(path / f"{name}.onnx")
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(None, {key: tensor.numpy() for key, tensor in tensors.items()})
    return {key: torch.from_numpy(array) for key, array in zip(names, arrays, strict=True)}


def _texts(count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 99, (count, length))
    mask = torch.ones_like(ids)
    for row in range(count):
        mask[row, max(2, length - 2 * row) :] = 0
    return ids * mask, mask


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=["r2d2", "prd2"])
def exported(request):
    return request.getfixturevalue(request.param)


@torch.no_grad()
def test_towers(exported):
    seen = []
    for count in IMAGES:
        pixel_values = torch.randn(count, 3, 32, 32)
        expected = exported.model.get_image_features(pixel_values)
        found = _run(exported.path, "image_tower", pixel_values=pixel_values)
        assert set(found) == {"last_hidden_state", "pooler_output", "image_embeds"}
        _close(found["last_hidden_state"], expected.last_hidden_state)
        _close(found["pooler_output"], expected.pooler_output)
        _close(found["image_embeds"], expected.pooler_output / expected.pooler_output.norm(dim=1, keepdim=True))
        seen.append(found["image_embeds"])
    for count, length in TEXTS:
        ids, mask = _texts(count, length)
        expected = exported.model.get_text_features(ids, mask)
        found = _run(exported.path, "text_tower", input_ids=ids, attention_mask=mask)
        assert set(found) == {"last_hidden_state", "pooler_output", "text_embeds"}
        _close(found["last_hidden_state"][mask.bool()], expected.last_hidden_state[mask.bool()])
        _close(found["pooler_output"], expected.pooler_output)
        _close(found["text_embeds"], expected.pooler_output / expected.pooler_output.norm(dim=1, keepdim=True))
        seen.append(found["text_embeds"])
    assert all(embeds.std(dim=0).max() > 1e-2 for embeds in seen if len(embeds) > 1), "the test needs different inputs"


@torch.no_grad()
@pytest.mark.parametrize(("texts", "images", "length", "pairs"), [(1, 1, 2, 1), (3, 5, 16, 20), (6, 2, 9, 2)])
def test_ranker(r2d2, texts, images, length, pairs):
    ids, mask = _texts(texts, length)
    inputs = {
        "text_hidden_states": r2d2.model.get_text_features(ids, mask).last_hidden_state,
        "image_hidden_states": r2d2.model.get_image_features(torch.randn(images, 3, 32, 32)).last_hidden_state,
        "attention_mask": mask,
        "text_index": torch.randint(texts, (pairs,)),
        "image_index": torch.randint(images, (pairs,)),
    }
    found = _run(r2d2.path, "ranker", **inputs)
    expected = r2d2.model.rank(*inputs.values())
    assert set(found) == {"match_probability", "text_match_logits", "image_match_logits"}
    for name, tensor in found.items():
        _close(tensor, expected[name])
    assert pairs < 20 or found["match_probability"].std() > 1e-3


def test_padding_changes_nothing(r2d2):
    ids, mask = _texts(1, 6)
    short = _run(r2d2.path, "text_tower", input_ids=ids, attention_mask=mask)["text_embeds"]
    padding = torch.zeros(1, 5, dtype=torch.int64)
    ids, mask = (torch.cat([each, padding], dim=1) for each in (ids, mask))
    _close(_run(r2d2.path, "text_tower", input_ids=ids, attention_mask=mask)["text_embeds"], short)


def test_dynamic_axes_have_names(r2d2):
    shapes = {}
    for name in ("image_tower", "text_tower", "ranker"):
        graph = onnx.load(r2d2.path / f"{name}.onnx").graph
        for value in (*graph.input, *graph.output):
            sizes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
            shapes[name, value.name] = sizes
    assert shapes["image_tower", "pixel_values"] == ["images", 3, 32, 32]
    assert shapes["text_tower", "input_ids"] == shapes["text_tower", "attention_mask"] == ["texts", "length"]
    assert shapes["text_tower", "text_embeds"] == ["texts", 16]
    assert shapes["ranker", "text_hidden_states"] == ["texts", "length", 32]
    assert shapes["ranker", "text_match_logits"] == ["pairs", 2]


def test_nothing_tells_of_the_machine(exported):
    for path in exported.path.iterdir():
        content = path.read_bytes()
        for place in (Path(folder.__file__).parents[2], Path(torch.__file__).parent, exported.path.parent):
            assert str(place).encode() not in content, path.name


def test_folder(exported):
    names = {path.name for path in exported.path.iterdir()}
    ranker = {"ranker.onnx"} if exported.model.can_rank else set()
    assert names >= {"config.json", "manifest.json", "tokenizer.json", "processor_config.json"}
    assert {name for name in names if name.endswith(".onnx")} == {"image_tower.onnx", "text_tower.onnx"} | ranker
    assert [path.name for path in exported.path.parent.iterdir()] == [exported.path.name], "something was left aside"
    config = R2D2Config.from_pretrained(exported.path)
    assert (config.cross_encoder_config is not None) == bool(ranker)
    assert R2D2Processor.from_pretrained(exported.path).tokenizer.model_max_length == 16
    manifest = OnnxManifest.load(exported.path)
    assert manifest.precision == "fp32"
    assert (manifest.image_size, manifest.max_length) == ((32, 32), 16)
    for record in manifest.graphs.values():
        assert 0 < max(record.deviation.values()) < 1e-4  # exactly equal would mean that nothing was compared
        assert record.bytes == (exported.path / record.file).stat().st_size
    assert manifest.graphs["image_tower"].cosine == pytest.approx(1, abs=1e-5)


def test_ranker_weights_are_read_back(r2d2):
    places = OnnxManifest.load(r2d2.path).ranker_weights
    modules = ranker_weights.read(r2d2.model.config, places, r2d2.path / "ranker.onnx")
    expected = r2d2.model.state_dict()
    found = modules.state_dict()
    assert len(found) == len([n for n in expected if n.split(".")[0] in modules]) > 50
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    assert any(transposed for _, transposed in places.values())
    left_out = [name for name, place in places.items() if place[0] == ""]  # torch 2.10's exporter keeps all zeros
    assert left_out in ([], ["text_image_match_head.bias"])


def _expected_int8(weight: np.ndarray) -> np.ndarray:
    """(out, in) rounded to 8 bits, symmetric, a scale for each output."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / 127
    return np.round(weight / scale) * scale


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions(r2d2, traced_before, tmp_path, precision, pil_images):
    traced_before(r2d2)
    manifest = export_onnx(
        r2d2.model,
        tmp_path / "out",
        precision,
        r2d2.processor,
        images=pil_images if precision == "int8" else None,
    )
    full = OnnxManifest.load(r2d2.path)
    made = {name: record.made for name, record in manifest.graphs.items()}
    if precision == "fp16":
        assert set(made.values()) == {"float16"}
    else:
        assert made == {"image_tower": "int8, static", "text_tower": "int8, dynamic", "ranker": "int8, dynamic"}
        operators = {
            name: {node.op_type for node in onnx.load(tmp_path / "out" / f"{name}.onnx").graph.node} for name in made
        }
        assert "QuantizeLinear" in operators["image_tower"]
        assert "MatMulInteger" in operators["text_tower"] & operators["ranker"]
    for name, record in manifest.graphs.items():
        worst = max(record.deviation.values())
        assert max(full.graphs[name].deviation.values()) * 10 < worst < 0.3, (name, record)
    assert 0.98 < manifest.graphs["image_tower"].cosine < 1
    modules = ranker_weights.read(r2d2.model.config, manifest.ranker_weights, tmp_path / "out" / "ranker.onnx")
    for name in (
        "text_image_encoder.layers.1.fc1.weight",
        "image_text_match_head.weight",
        "image_joint_projection.weight",
    ):
        found, weight = modules.state_dict()[name].numpy(), r2d2.model.state_dict()[name].numpy()
        rounded = _expected_int8(weight) if precision == "int8" else weight.astype(np.float16).astype(np.float32)
        step = np.abs(weight).max() / 127
        np.testing.assert_allclose(found, rounded, atol=0.02 * step if precision == "int8" else 0, err_msg=name)
        assert np.abs(found - weight).max() > 1e-5


def test_int8_without_images_keeps_convolutions(r2d2, traced_before, tmp_path):
    traced_before(r2d2)
    manifest = export_onnx(r2d2.model, tmp_path / "out", "int8", r2d2.processor)
    assert manifest.graphs["image_tower"].made == "int8, dynamic; convolutions in float32"


def test_int8_of_a_vit(prd2, traced_before, tmp_path):
    traced_before(prd2)
    manifest = export_onnx(prd2.model, tmp_path / "out", "int8", prd2.processor)
    assert {record.made for record in manifest.graphs.values()} == {"int8, dynamic"}
    assert manifest.graphs["image_tower"].cosine > 0.98
    assert set(manifest.graphs) == {"image_tower", "text_tower"}
    assert manifest.ranker_weights == {}


def test_a_half_model_is_exported_in_float32(prd2, traced_before, tmp_path):
    traced_before(prd2)
    half = R2D2Model(prd2.model.config).half()
    half.load_state_dict(prd2.model.state_dict())
    # the graphs are of the weights before rounding: against the rounded ones they are off, which must be noticed
    with pytest.raises(RuntimeError, match=r"does not compute what torch does: .* differs by"):
        export_onnx(half, tmp_path / "out", processor=prd2.processor)
    assert half.dtype == torch.float16


def test_nothing_is_left_of_a_failed_export(prd2, traced_before, tmp_path, monkeypatch):
    traced_before(prd2)
    monkeypatch.setattr(folder, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="at most 0e"):
        export_onnx(prd2.model, tmp_path / "out", processor=prd2.processor)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not finite"), (3e4, "cosine with torch's is")])
def test_values_that_a_precision_spoils(prd2, traced_before, tmp_path, value, message):
    graphs = tmp_path / "graphs"
    shutil.copytree(prd2.path, graphs)
    model = onnx.load(graphs / "image_tower.onnx")
    bias = next(i for i in model.graph.initializer if i.name.endswith("vision_projection.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(16, value, np.float32), bias.name))
    onnx.save(model, graphs / "image_tower.onnx")
    traced_before(dataclasses.replace(prd2, path=graphs))
    with pytest.raises(RuntimeError, match=message):
        export_onnx(prd2.model, tmp_path / "out", "fp16", prd2.processor)
    assert not (tmp_path / "out").exists()


def test_where_an_export_may_go(prd2, traced_before, tmp_path):
    traced_before(prd2)
    output = tmp_path / "new" / "out"
    export_onnx(prd2.model, output, processor=prd2.processor)
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_onnx(prd2.model, output, processor=prd2.processor)
    (output / "notes.txt").write_text("mine")
    note_written(output, "export", [])
    (output / "ranker.onnx").touch()
    note_written(output, "export", ["ranker.onnx"])  # as of a model that had one
    export_onnx(prd2.model, output, "fp16", prd2.processor, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / "ranker.onnx").exists()
    assert OnnxManifest.load(output).precision == "fp16"
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").touch()
    with pytest.raises(FileExistsError, match="something else"):
        export_onnx(prd2.model, other, processor=prd2.processor, overwrite=True)
    with pytest.raises(NotADirectoryError):
        export_onnx(prd2.model, other / "cat.png", processor=prd2.processor)
    (other / "manifest.json").write_text('{"name": "web app"}')
    (other / "my_tower.onnx").touch()
    with pytest.raises(FileExistsError, match="something else"):
        export_onnx(prd2.model, other, processor=prd2.processor, overwrite=True)
    assert (other / "cat.png").exists()


def test_killed_export_leaves_nothing_for_long(prd2, traced_before, tmp_path, monkeypatch):
    """While its graphs are written, and before its files are moved to their place: the earlier one is whole."""
    from modeling_r2d2.processing.files import writing as files

    traced_before(prd2)
    output = tmp_path / "out"
    before = os.umask(0o022)
    try:
        export_onnx(prd2.model, output, processor=prd2.processor)
    finally:
        os.umask(before)
    files_of = {path.name: path for path in output.iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files_of.values()} == {0o644}
    for place, name in ((folder, "_compare"), (files, "_sync")):

        def export(place=place, name=name):
            monkeypatch.setattr(place, name, die)
            export_onnx(prd2.model, output, "fp16", prd2.processor, overwrite=True)

        assert killed(export)
        assert any(is_partial(path) for path in output.iterdir())
        manifest = OnnxManifest.load(output)
        manifest.check(output)
        assert manifest.precision == "fp32"
    export_onnx(prd2.model, output, "fp16", prd2.processor, overwrite=True)
    assert {path.name for path in output.iterdir()} == files_of.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_bad_arguments(prd2, tmp_path, pil_images):
    for arguments, message in (
        ({"precision": "int4"}, "fp32, fp16, int8"),
        ({"images": pil_images}, "for int8"),
        ({"images": [], "precision": "int8"}, "0 given"),
        ({"processor": None}, "needs its processor"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(prd2.model, tmp_path / "out", **{"processor": prd2.processor, **arguments})
    WukongConfig.from_preset("wukong-vit-b-32-clip").save_pretrained(tmp_path / "wukong")
    with pytest.raises(ValueError, match="'wukong'"):
        export_onnx(tmp_path / "wukong", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_traced(prd2, tmp_path):
    graph = graphs_of(prd2.model)["image_tower"]

    class DataDependent(torch.nn.Module):
        def forward(self, pixel_values):
            if pixel_values.sum() > 0:
                return pixel_values, pixel_values, pixel_values
            return pixel_values + 1, pixel_values, pixel_values

    graph = graph.__class__(**{**vars(graph), "network": DataDependent().eval()})
    with pytest.raises(RuntimeError, match="cannot export the image_tower"):
        write_graph(graph, {"pixel_values": torch.randn(2, 3, 32, 32)}, tmp_path / "x.onnx")


def test_an_exporter_that_changes_weights_is_noticed(r2d2):
    with pytest.raises(RuntimeError, match="does not hold image_joint_projection"):
        ranker_weights.locate(tiny_model("resnet"), r2d2.path / "ranker.onnx")


def test_command(prd2, traced_before, tmp_path):
    prd2.model.save_pretrained(tmp_path / "model")
    prd2.processor.save_pretrained(tmp_path / "model")
    for seed in range(3):
        tiny_image(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    traced_before(prd2)
    arguments = ["export", str(tmp_path / "model"), "--output", str(tmp_path / "onnx"), "--precision", "int8"]
    result = CliRunner().invoke(app, [*arguments, "--images", str(tmp_path)])
    assert result.exit_code == 0, (result.output, result.exception)
    for part in (
        "1 of the pictures could not be read and were skipped, first",
        "broken.jpg",
        "text_tower.onnx",
        "int8, dynamic",
        "pre-ranking only",
        "R2D2OnnxModel.from_pretrained",
    ):
        assert part in result.output
    manifest = json.loads((tmp_path / "onnx" / "manifest.json").read_text("utf-8"))
    assert manifest["source"] == "model"
    assert str(tmp_path) not in (tmp_path / "onnx" / "manifest.json").read_text("utf-8")
    config = json.loads((tmp_path / "onnx" / "config.json").read_text("utf-8"))
    assert "auto_map" not in config
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").touch()
    nothing = CliRunner().invoke(app, [*arguments, "--overwrite", "--images", str(tmp_path / "none")])
    assert "no readable picture" in str(nothing.exception)
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, FileExistsError)
