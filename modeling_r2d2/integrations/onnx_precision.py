"""A float32 graph in half precision or in int8.

int8 quantises matrix products by constant weights: weights per output channel when the graph is made, activations per
call from their own range (dynamic), so it needs no data. A convolutional tower gains nothing from that: its ranges are
measured beforehand on pictures (static), or it stays in float32.
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def to_half(source: Path, target: Path) -> str:
    """Weights and arithmetic in float16, inputs and outputs in float32. Returns what was done, for the manifest."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)
    return "float16"


def to_int8(source: Path, target: Path, images: Iterable[dict[str, np.ndarray]] | None = None) -> str:
    """Quantise a graph.

    Args:
        images: inputs of the graph to measure ranges on, of a convolutional tower; others are quantised dynamically.

    Returns:
        what was done, for the manifest.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(source)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    prepared = target.with_name(f"{target.name}.prepared")
    try:
        with _quietly():
            if convolutions > 1 and images is not None:
                quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
                quantize_static(
                    prepared,
                    target,
                    _reader(images),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
                return "int8, static"
            # The quantiser turns Gemm round and then trips over the shapes noted before.
            del model.graph.value_info[:]
            onnx.save(model, prepared)
            quantize_dynamic(
                prepared, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
            )
    finally:
        prepared.unlink(missing_ok=True)
    if convolutions > 1:
        return "int8, dynamic; convolutions in float32"
    return "int8, dynamic"


def _reader(images: Iterable[dict[str, np.ndarray]]):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.inputs = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    return Reader()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the quantiser's advice on preparation, logged at the root."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


__all__ = ["PRECISIONS", "Precision", "to_half", "to_int8"]
