"""Towers and ranker as ONNX graphs, and what runs them. Needs the extra `[onnx]`, imported when it is needed."""

from .folder import export_onnx
from .manifest import OnnxFolderError, OnnxManifest
from .onnx_model import R2D2OnnxModel

__all__ = ["OnnxFolderError", "OnnxManifest", "R2D2OnnxModel", "export_onnx"]
