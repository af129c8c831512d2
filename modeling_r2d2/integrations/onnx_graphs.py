"""The three parts of a model as ONNX graphs of dynamic batch and length, traced by `torch.export`.

image_tower  pixel_values (I, 3, H, W)
    -> last_hidden_state (I, N, E), pooler_output (I, D), image_embeds (I, D)
text_tower   input_ids, attention_mask (T, L) int64
    -> last_hidden_state (T, L, W), pooler_output (T, D), text_embeds (T, D)
ranker       text_hidden_states (T, L, W), image_hidden_states (I, N, E), attention_mask (T, L), text_index,
             image_index (P,) int64
    -> match_probability (P,), text_match_logits (P, 2), image_match_logits (P, 2)

`pooler_output` is the embedding before the L2 norm, `image_embeds` and `text_embeds` after it. Everything is float32
at the borders, whatever the precision within. H, W and with them N are fixed when the graph is made, and so is L of a
text tower that reads its padding.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..inference.onnx_manifest import IMAGE_TOWER, RANKER, TEXT_TOWER
from ..model.modeling_r2d2 import R2D2Model, normalize

#: LayerNormalization and Gelu are operators of their own from here on.
OPSET = 20


@dataclass(frozen=True)
class Graph:
    """One of the parts: its network, names, and which axes are dynamic: {input or output: {axis: name}}."""

    name: str
    network: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: dict[str, dict[int, str]] = field(repr=False)


class _Part(nn.Module):
    def __init__(self, model: R2D2Model):
        super().__init__()
        self.model = model


class _ImageTower(_Part):
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model.get_image_features(pixel_values)
        return output.last_hidden_state, output.pooler_output, normalize(output.pooler_output)


class _TextTower(_Part):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model.get_text_features(input_ids, attention_mask)
        return output.last_hidden_state, output.pooler_output, normalize(output.pooler_output)


class _Ranker(_Part):
    def forward(
        self,
        text_hidden_states: Tensor,
        image_hidden_states: Tensor,
        attention_mask: Tensor,
        text_index: Tensor,
        image_index: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        output = self.model.rank(
            text_hidden_states, image_hidden_states, attention_mask, text_index, image_index, cls_only=True
        )
        return output.match_probability, output.text_match_logits, output.image_match_logits


def graphs_of(model: R2D2Model) -> dict[str, Graph]:
    """The parts of a model, by name; without a ranker for PRD2."""
    texts, images, pairs = {0: "texts"}, {0: "images"}, {0: "pairs"}
    words = {0: "texts"} if model.config.attend_padding else {0: "texts", 1: "length"}
    tower = ("last_hidden_state", "pooler_output")
    graphs = [
        Graph(
            IMAGE_TOWER,
            _ImageTower(model),
            ("pixel_values",),
            (*tower, "image_embeds"),
            dict.fromkeys(("pixel_values", *tower, "image_embeds"), images),
        ),
        Graph(
            TEXT_TOWER,
            _TextTower(model),
            ("input_ids", "attention_mask"),
            (*tower, "text_embeds"),
            dict.fromkeys(("input_ids", "attention_mask", tower[0]), words)
            | dict.fromkeys((tower[1], "text_embeds"), texts),
        ),
    ]
    if model.can_rank:
        outputs = ("match_probability", "text_match_logits", "image_match_logits")
        graphs.append(
            Graph(
                RANKER,
                _Ranker(model),
                ("text_hidden_states", "image_hidden_states", "attention_mask", "text_index", "image_index"),
                outputs,
                {"text_hidden_states": words, "attention_mask": words, "image_hidden_states": images}
                | dict.fromkeys(("text_index", "image_index", *outputs), pairs),
            )
        )
    return {graph.name: graph.__class__(**{**vars(graph), "network": graph.network.eval()}) for graph in graphs}


@torch.no_grad()
def write_graph(graph: Graph, example: dict[str, Tensor], path: Path, opset: int = OPSET) -> None:
    """Trace a part on example inputs (of at least two rows on every dynamic axis, no two axes alike) and write it.

    Raises:
        RuntimeError: the network cannot be exported, with torch's own explanation as its cause.
    """
    shapes = tuple(dict.fromkeys(graph.dynamic[name], torch.export.Dim.DYNAMIC) for name in graph.inputs)
    with _quietly():
        try:
            program = torch.onnx.export(
                graph.network,
                tuple(example[name] for name in graph.inputs),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                opset_version=opset,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise RuntimeError(
                f"torch cannot export the {graph.name} to ONNX ({type(error).__name__}); its explanation is above"
            ) from error
        assert program is not None  # as always with dynamo
        _name_axes(program, graph)
        _drop_traces(program)
        program.save(path)


def _name_axes(program, graph: Graph) -> None:
    """Give dynamic axes names that a reader understands, instead of the tracer's symbols; they are hints alone."""
    symbols: dict[str, str] = {}
    values = [*program.model.graph.inputs, *program.model.graph.outputs]
    for value in values:
        for axis, name in graph.dynamic[value.name].items():
            symbols[str(value.shape[axis])] = name
            value.shape[axis] = name
    for node in program.model.graph.all_nodes():
        for value in node.outputs:
            for axis, size in enumerate(value.shape or ()):
                if str(size) in symbols and not isinstance(size, int):
                    value.shape[axis] = symbols[str(size)]


def _drop_traces(program) -> None:
    """Leave out the stack trace that the exporter notes at every node: half of a small file, and paths of this
    machine."""
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()
    program.model.metadata_props.clear()
    program.model.graph.metadata_props.clear()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says on every call about torchvision and its own deprecated calls."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


__all__ = ["OPSET", "Graph", "graphs_of", "write_graph"]
