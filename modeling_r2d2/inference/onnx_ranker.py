"""The ranker's weights, read back from its graph.

`FastRanker` folds weights into one another and keeps keys and values of pictures, which a finished graph cannot: for a
search in an index the cross encoders are made anew from the tensors of `ranker.onnx`, so that they need not be stored
twice. Of an int8 graph these are the weights as they were rounded.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..model.configuration_r2d2 import R2D2Config
from ..model.cross_encoder_r2d2 import R2D2CrossEncoder
from ..model.modeling_r2d2 import RANKER

#: Parameter -> (tensor of the graph, whether it lies there transposed). `ZEROS` stands for a bias of zeros, which the
#: exporter leaves out.
Places = dict[str, tuple[str, bool]]
ZEROS = ""


def skeleton(config: R2D2Config) -> nn.ModuleDict:
    """The ranker's modules under the names that `R2D2Model` gives them, in evaluation mode, their weights not set."""
    cross, vision, text = config.cross_encoder_config, config.vision_hidden_size, config.text_hidden_size
    assert cross is not None  # a graph of a ranker has one
    with torch.device("meta"):
        modules = {
            "image_joint_projection": nn.Linear(vision, cross.hidden_size),
            "text_image_encoder": R2D2CrossEncoder._from_config(cross, context_size=vision),
            "image_text_encoder": R2D2CrossEncoder._from_config(cross, context_size=text),
            "text_image_match_head": nn.Linear(cross.hidden_size, 2),
            "image_text_match_head": nn.Linear(cross.hidden_size, 2),
        }
    return nn.ModuleDict(modules).eval()


def locate(model: nn.Module, path: Path) -> Places:
    """Where the graph has each of the ranker's parameters; found by content, since the exporter renames and shares.

    Raises:
        RuntimeError: the graph lacks one.
    """
    import onnx

    tensors: dict[tuple[tuple[int, ...], bytes], str] = {}
    for initializer in onnx.load(path).graph.initializer:
        if initializer.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(initializer, base_dir=str(path.parent))
            tensors[array.shape, array.tobytes()] = initializer.name
    places: Places = {}
    for module in RANKER:
        for name, parameter in getattr(model, module).named_parameters(prefix=module):
            array = parameter.detach().numpy()
            for transposed in (False, True) if array.ndim == 2 else (False,):
                there = np.ascontiguousarray(array.T) if transposed else array
                if (found := tensors.get((there.shape, there.tobytes()))) is not None:
                    places[name] = (found, transposed)
                    break
            else:
                if array.ndim == 1 and not array.any():
                    places[name] = (ZEROS, False)
                    continue
                raise RuntimeError(
                    f"{path.name} does not hold {name} as it is: this release of torch ({torch.__version__}) exports "
                    "the ranker in another form; use torch 2.13"
                )
    return places


def turned_by_quantiser(places: Places, path: Path) -> Places:
    """The places after int8: onnxruntime's quantiser makes Gemm of a float32 graph to MatMul, and turns its weights."""
    import onnx

    turned = {
        node.input[1]
        for node in onnx.load(path).graph.node
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
    }
    return {parameter: (name, transposed != (name in turned)) for parameter, (name, transposed) in places.items()}


def read(config: R2D2Config, places: Places, path: Path) -> nn.ModuleDict:
    """The ranker's modules with the weights of a graph, float32.

    Raises:
        KeyError: the graph lacks a tensor of `places`.
    """
    import onnx

    tensors = {
        initializer.name: onnx.numpy_helper.to_array(initializer, base_dir=str(path.parent))
        for initializer in onnx.load(path).graph.initializer
    }
    modules = skeleton(config)
    shapes = {name: tensor.shape for name, tensor in modules.state_dict().items()}
    state: dict[str, Tensor] = {}
    for parameter, (name, transposed) in places.items():
        if name == ZEROS:
            state[parameter] = torch.zeros(shapes[parameter])
            continue
        if name not in tensors and f"{name}_quantized" not in tensors:
            raise KeyError(f"{path} has no tensor {name!r}, which holds {parameter}: export the model anew")
        array = tensors[name] if name in tensors else _dequantised(tensors, name)
        array = array.T if transposed else array
        state[parameter] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    modules.load_state_dict(state, assign=True)
    return modules.requires_grad_(False)


def _dequantised(tensors: dict[str, np.ndarray], name: str) -> np.ndarray:
    """(in, out) of int8 with a scale for each column, or one for all."""
    scale, zero = tensors[f"{name}_scale"], tensors[f"{name}_zero_point"]
    return (tensors[f"{name}_quantized"].astype(np.float32) - zero.astype(np.float32)) * scale


__all__ = ["Places", "locate", "read", "skeleton", "turned_by_quantiser"]
