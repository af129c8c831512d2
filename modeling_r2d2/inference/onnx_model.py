"""The exported graphs behind the interface that retrieval and evaluation use of an `R2D2Model`."""

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..model.configuration_brivl import BriVLConfig
from ..model.configuration_r2d2 import R2D2Config
from ..model.modeling_r2d2 import R2D2MatchOutput, R2D2Model
from ..model.two_towers_r2d2 import check_padded, check_tokens, real_tokens, refuse_empty, require_ranker
from . import onnx_ranker as ranker_weights
from .finite import require_finite
from .loading import load_config, model_type
from .onnx_manifest import IMAGE_TOWER, RANKER, TEXT_TOWER, OnnxManifest
from .onnx_session import feed, open_session, require_onnx


class R2D2OnnxModel(nn.Module):
    """A folder that `export_onnx` or `r2d2 export` wrote, run by onnxruntime in place of an `R2D2Model`.

    ```python
    from modeling_r2d2 import R2D2OnnxModel, R2D2Processor
    from modeling_r2d2.evaluation import evaluate_retrieval

    model, processor = R2D2OnnxModel.from_pretrained("runs/onnx"), R2D2Processor.from_pretrained("runs/onnx")
    evaluate_retrieval(model, processor, pictures, texts, candidates=10)
    ```

    Inputs and outputs are float32 tensors on the CPU. It has no gradient, and no attentions or inner states. An index
    of pictures made with it belongs to these graphs: `R2D2Retriever.open(index, model, processor)`.

    Args:
        folder: of the graphs.
        threads: of onnxruntime; default: as many as torch has.
        providers: of onnxruntime.
        verify: compare the files' checksums first.

    Raises:
        OnnxFolderError: no export there, or a missing, torn or edited file.
        ValueError: a provider that this onnxruntime does not have.
        ImportError: onnxruntime is not installed.
    """

    temperature: Tensor

    def __init__(
        self,
        folder: str | PathLike,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        verify: bool = True,
    ):
        super().__init__()
        require_onnx("onnxruntime")
        self.folder = Path(folder)
        self.manifest = OnnxManifest.load(self.folder)
        self.manifest.check(self.folder, content=verify)
        kind = BriVLConfig if model_type(self.folder) == BriVLConfig.model_type else R2D2Config
        self.config = load_config(kind, self.folder)
        threads = threads or torch.get_num_threads()
        self._sessions = {
            name: open_session(self.folder / record.file, threads, providers)
            for name, record in self.manifest.graphs.items()
        }
        self.register_buffer("temperature", torch.tensor(self.manifest.temperature))
        # They stand for the weights: an index of pictures knows by them which model it belongs to.
        for name, record in self.manifest.graphs.items():
            digest = torch.frombuffer(bytearray.fromhex(record.digest), dtype=torch.uint8)
            self.register_buffer(f"{name}_digest", digest)
        self.eval()

    @classmethod
    def from_pretrained(cls, folder: str | PathLike, **options) -> "R2D2OnnxModel":
        """The same as the constructor, under the name that transformers uses."""
        return cls(folder, **options)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and outputs: float32."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Of inputs and outputs: the CPU."""
        return torch.device("cpu")

    def _apply(self, fn, recurse: bool = True):
        """`.to(…)`, `.half()` and the like: only what changes nothing."""
        moved = fn(self.temperature)
        if moved.dtype != torch.float32 or moved.device.type != "cpu":
            raise ValueError(
                f"exported graphs take float32 tensors on the CPU, not {moved.dtype} on {moved.device}: choose the "
                "precision when exporting, and the device by providers="
            )
        return self

    can_rank = R2D2Model.can_rank
    forward = R2D2Model.forward
    _contrastive_loss = R2D2Model._contrastive_loss
    match = R2D2Model.match

    def bounded_temperature(self) -> Tensor:
        """The temperature τ of pre-ranking."""
        return self.temperature

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Encode images (I, 3, H, W) of the exported size.

        Returns:
            `last_hidden_state` (I, N, E) and the unnormalised embedding (I, D) in `pooler_output`.

        Raises:
            ValueError: an empty batch, another image size, an argument that the graph does not have.
        """
        _refuse_arguments(kwargs)
        refuse_empty(pixel_values, "pixel_values")
        if tuple(pixel_values.shape[-2:]) != self.manifest.image_size:
            given, made = ("×".join(map(str, size)) for size in (pixel_values.shape[-2:], self.manifest.image_size))
            raise ValueError(f"images of {given} pixels for a tower exported at {made}: use the folder's own processor")
        return self._encoded(IMAGE_TOWER, {"pixel_values": pixel_values.float()})

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode texts (T, L).

        Args:
            token_type_ids: the graph holds the usual ones, 0.
            position_ids: the graph holds the usual ones, 0 … L − 1.

        Returns:
            `last_hidden_state` (T, L, W) and the unnormalised embedding (T, D) in `pooler_output`.

        Raises:
            ValueError: an empty batch, too many tokens, ids outside the vocabulary, other token types or positions, an
                argument that the graph does not have, another length than that of texts whose padding is read.
        """
        if token_type_ids is not None and token_type_ids.any():
            kwargs["token_type_ids"] = token_type_ids
        if position_ids is not None and (position_ids != torch.arange(input_ids.shape[1])).any():
            kwargs["position_ids"] = position_ids
        _refuse_arguments(kwargs)
        check_tokens(input_ids, self.config.text_config)
        if self.config.attend_padding:
            check_padded(input_ids, self.config)
        mask = real_tokens(input_ids, self.config.text_config) if attention_mask is None else attention_mask
        return self._encoded(TEXT_TOWER, {"input_ids": input_ids.long(), "attention_mask": mask.long()})

    def rank(
        self,
        text_hidden_states: Tensor,
        image_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        text_index: Tensor | None = None,
        image_index: Tensor | None = None,
        cls_only: bool = True,
        **kwargs,
    ) -> R2D2MatchOutput:
        """Ranking on states already encoded, as `R2D2Model.rank`; the graph gives no states of the cross encoders, so
        `text_cross_output` and `image_cross_output` are None whatever `cls_only` says.

        Raises:
            ValueError: a model without a ranker (PRD2), numbers of texts, pictures and pairs that do not fit.
        """
        require_ranker(self.config)
        _refuse_arguments(kwargs)
        texts, images = len(text_hidden_states), len(image_hidden_states)
        if text_index is None:
            text_index = torch.arange(texts)
        if image_index is None:
            image_index = torch.arange(images)
        if len(text_index) != len(image_index):
            raise ValueError(f"{len(text_index)} texts for {len(image_index)} pictures: rank takes pairs of both")
        if attention_mask is None:
            attention_mask = torch.ones(text_hidden_states.shape[:2], dtype=torch.int64)
        probability, text_logits, image_logits = self._run(
            RANKER,
            {
                "text_hidden_states": text_hidden_states.float(),
                "image_hidden_states": image_hidden_states.float(),
                "attention_mask": attention_mask.long(),
                "text_index": text_index,
                "image_index": image_index,
            },
        )
        return R2D2MatchOutput(
            match_probability=probability, text_match_logits=text_logits, image_match_logits=image_logits
        )

    # The modules that `FastRanker`, and with it a search in an index, reads.

    @cached_property
    def _ranker_modules(self) -> nn.ModuleDict:
        """Not registered, so that they are none of the model's weights: those are the graphs'."""
        require_ranker(self.config)
        path = self.folder / self.manifest.graphs[RANKER].file
        return ranker_weights.read(self.config, self.manifest.ranker_weights, path)

    @property
    def text_image_encoder(self) -> nn.Module:
        """The text-image encoder in torch, its weights read from the graph."""
        return self._ranker_modules["text_image_encoder"]

    @property
    def image_text_encoder(self) -> nn.Module:
        """The image-text encoder in torch, its weights read from the graph."""
        return self._ranker_modules["image_text_encoder"]

    @property
    def image_joint_projection(self) -> nn.Module:
        """Linear (E -> D) of image states for the image-text encoder."""
        return self._ranker_modules["image_joint_projection"]

    @property
    def text_image_match_head(self) -> nn.Module:
        """Linear (D -> 2) of the text-image encoder."""
        return self._ranker_modules["text_image_match_head"]

    @property
    def image_text_match_head(self) -> nn.Module:
        """Linear (D -> 2) of the image-text encoder."""
        return self._ranker_modules["image_text_match_head"]

    def _encoded(self, name: str, inputs: dict[str, Tensor]) -> BaseModelOutputWithPooling:
        states, pooled, _ = self._run(name, inputs)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=pooled)

    def _run(self, name: str, inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = [torch.from_numpy(array) for array in self._sessions[name].run(None, feed(inputs))]
        for array in arrays:
            require_finite(array, f"what {self.folder / self.manifest.graphs[name].file} computes")
        return arrays


def _refuse_arguments(arguments: dict) -> None:
    given = sorted(name for name, value in arguments.items() if value is not None and value is not False)
    if given:
        raise ValueError(f"the exported graphs take no {', '.join(given)}: use R2D2Model for that")


__all__ = ["R2D2OnnxModel"]
