"""Tiny models exported once: an R2D2 with a ResNet (convolutions, mean pooling) and a PRD2 with a CLIP tower."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")

from modeling_r2d2 import R2D2Model, R2D2Processor, export_onnx
from modeling_r2d2.integrations import onnx_export as folder
from tests.helpers import tiny_image, tiny_processor
from tests.tiny import tiny_config


@dataclass
class Exported:
    """A model, its processor and the folder of its float32 graphs."""

    model: R2D2Model
    processor: R2D2Processor
    path: Path


def _model(tower: str, ranker: bool) -> R2D2Model:
    config = tiny_config(tower, ranker, max_text_length=16)
    config.text_config.num_hidden_layers = 1  # the exporter takes its time for every layer
    if tower == "clip":
        config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    model = R2D2Model(config).eval()
    for parameter in model.parameters():  # random weights, biases too, that give scores which differ
        if parameter.dim() == 2:
            parameter.data.mul_(2)
        elif parameter.dim() == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    if ranker:
        model.text_image_match_head.bias.data.zero_()  # as a new model has it; the exporter leaves it out
    return model


@pytest.fixture(scope="session")
def r2d2(tmp_path_factory) -> Exported:
    """With a ranker and a convolutional tower."""
    model, processor, path = _model("resnet", True), tiny_processor(), tmp_path_factory.mktemp("onnx") / "r2d2"
    export_onnx(model, path, processor=processor)
    return Exported(model, processor, path)


@pytest.fixture(scope="session")
def prd2(tmp_path_factory) -> Exported:
    """Without a ranker, with a ViT."""
    model, processor, path = _model("clip", False), tiny_processor(), tmp_path_factory.mktemp("onnx") / "prd2"
    export_onnx(model, path, processor=processor)
    return Exported(model, processor, path)


@pytest.fixture
def traced_before(monkeypatch):
    """Exports of a model that was exported already take its graphs from there, which saves the tracing."""

    def use(exported: Exported) -> None:
        def write_graph(graph, example, path, opset):
            shutil.copy(exported.path / f"{graph.name}.onnx", path)

        monkeypatch.setattr(folder, "write_graph", write_graph)

    return use


@pytest.fixture(scope="session")
def pil_images():
    """Eight pictures of several sizes."""
    return [tiny_image(seed, width=30 + 3 * seed, height=50 - 2 * seed) for seed in range(8)]
