"""A model folder as a folder of ONNX graphs: measured against torch before it is moved to its place."""

import copy
import json
import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from os import PathLike
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..inference import onnx_ranker as ranker_weights
from ..inference.encoding import evaluating
from ..inference.identity import ModelIdentity
from ..inference.loading import load_processor, load_whole
from ..inference.models import two_tower_class
from ..inference.onnx_manifest import (
    IMAGE_TOWER,
    MANIFEST,
    RANKER,
    TEXT_TOWER,
    GraphRecord,
    OnnxFolderError,
    OnnxManifest,
)
from ..inference.onnx_session import feed, open_session, require_onnx
from ..model.configuration_r2d2 import text_positions
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.digests import digest_of_file
from ..processing.files.images import open_image, opening_of, tower_size
from ..processing.files.progress import bar
from ..processing.files.writing import Stamp, clean_leftovers, foreign_entries, refuse_no_folder, staged_folder
from .onnx_graphs import OPSET, Graph, graphs_of, write_graph
from .onnx_precision import PRECISIONS, Precision, to_half, to_int8

#: What a float32 graph may differ from torch, in units of max(1, largest value).
TOLERANCE = 1e-4
#: Embeddings of a lower precision may point this far away from torch's, and no further.
LEAST_COSINE = 0.9
#: (images, texts, tokens of the longest text or None for the most there may be, pairs) of the comparison with torch.
_SHAPES = ((1, 1, 2, 1), (2, 3, 5, 7), (5, 4, None, 3))
#: Pictures that the tower sees at a time while ranges are measured.
_RANGE_BATCH = 8


def export_onnx(
    model: str | PathLike | R2D2Model,
    output: str | PathLike,
    precision: Precision = "fp32",
    processor: R2D2Processor | None = None,
    images: Sequence[Image.Image | str | PathLike] | None = None,
    opset: int = OPSET,
    overwrite: bool = False,
) -> OnnxManifest:
    """Export towers and ranker to ONNX; `R2D2OnnxModel.from_pretrained(output)` runs them.

    The folder gets image_tower.onnx, text_tower.onnx, ranker.onnx (not for PRD2), config.json, the processor's files
    and manifest.json. Every graph is compared with torch in float32 on several numbers of images, texts, tokens and
    pairs; the manifest records the deviations.

    Args:
        model: folder, Hub name or loaded model (left as it is, and exported in float32 from whatever dtype).
        output: a new folder.
        overwrite: or one that holds an earlier export, whose files are replaced or removed; what others have put there
            stays.
        precision: "fp32", "fp16" (half the size; on a CPU no faster) or "int8" (a quarter of the size of what is
            quantised, and faster).
        images: for int8 and a convolutional image tower, a hundred or so typical pictures (PIL or paths) to measure
            the ranges of its activations on; without them its convolutions stay in float32.
        opset: of ONNX, at least 18.

    Returns:
        the manifest.

    Raises:
        ValueError: an unknown precision, a loaded model without its processor, pictures where nothing needs them.
        FileExistsError, NotADirectoryError: `output` holds something else, or an export without `overwrite`.
        RuntimeError: torch cannot export the model, or a graph computes something else than torch (in fp32 beyond
            `TOLERANCE`, in others an embedding beyond `LEAST_COSINE`).
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    require_onnx()
    output = Path(output)
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}; use one of {', '.join(PRECISIONS)}")
    if images is not None and (precision != "int8" or len(images) == 0):
        raise ValueError(f"pictures serve to measure ranges for int8: precision is {precision!r}, {len(images)} given")
    _refuse_occupied(output, overwrite)
    model, processor = _loaded(model, processor)
    with evaluating(model), staged_folder(output, "export", last=[MANIFEST], stale=["*"]) as folder:
        return _write(model, processor, folder, precision, images, opset)


def _write(
    model: R2D2Model,
    processor: R2D2Processor,
    folder: Path,
    precision: Precision,
    images: Sequence | None,
    opset: int,
) -> OnnxManifest:
    (width, height), _ = tower_size(processor)
    size = (height, width)
    longest = min(processor.tokenizer.model_max_length, text_positions(model.config.text_config))
    batches = list(_batches(processor, images)) if images is not None else None
    inputs = _Inputs(model, size, longest, batches[0]["pixel_values"] if batches else None)
    records, places = {}, {}
    for name, graph in bar(graphs_of(model).items(), "exporting", unit="graphs"):
        full, final = folder / f"{name}.fp32", folder / f"{name}.onnx"
        write_graph(graph, inputs.of(name, *_SHAPES[1]), full, opset)
        if name == RANKER:
            places = ranker_weights.locate(model, full)
            if precision == "int8":
                places = ranker_weights.turned_by_quantiser(places, full)
        made = "float32"
        if precision == "fp16":
            made = to_half(full, final)
        elif precision == "int8":
            ranges = map(feed, batches) if batches and name == IMAGE_TOWER else None
            made = to_int8(full, final, ranges)
        else:
            full.rename(final)
        full.unlink(missing_ok=True)
        _refuse_split(folder, name)
        deviation, cosine = _compare(graph, final, inputs, exact=precision == "fp32")
        records[name] = GraphRecord(final.name, made, final.stat().st_size, digest_of_file(final), deviation, cosine)
    identity = ModelIdentity.of(model, processor)
    _save_settings(model, processor, folder)
    manifest = OnnxManifest(
        precision=precision,
        source=Path(identity.source).name if identity.source and os.path.isabs(identity.source) else identity.source,
        source_weights=identity.weights,
        source_preprocessing=identity.preprocessing,
        temperature=float(model.bounded_temperature()),
        image_size=size,
        max_length=longest,
        opset=opset,
        graphs=records,
        ranker_weights=places,
        versions={name: metadata.version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
    )
    manifest.save(folder)
    return manifest


class _Inputs:
    """Inputs of the graphs, the same ones whenever they are asked for: random, but for pictures that were given, on
    which alone measured ranges hold."""

    def __init__(self, model: R2D2Model, size: tuple[int, int], longest: int, pixel_values: Tensor | None = None):
        self.model, self.size, self.longest, self.pixel_values = model, size, longest, pixel_values

    def of(self, name: str, images: int, texts: int, length: int | None, pairs: int) -> dict[str, Tensor]:
        """Inputs of the graph `name`; texts of different lengths, the first being the longest; where padding is read
        all of the full length."""
        config, generator = self.model.config, torch.Generator().manual_seed(0)
        length = self.longest if config.attend_padding else min(length or self.longest, self.longest)
        if name == IMAGE_TOWER and self.pixel_values is not None:
            return {"pixel_values": self.pixel_values[torch.arange(images) % len(self.pixel_values)]}
        if name == IMAGE_TOWER:
            channels = getattr(config.vision_config, "num_channels", 3)
            return {"pixel_values": torch.randn(images, channels, *self.size, generator=generator)}
        ids = torch.randint(1, config.text_config.vocab_size, (texts, length), generator=generator)
        own = (length - torch.arange(texts)).clamp(min=min(2, length))
        mask = (torch.arange(length) < own.unsqueeze(1)).long()
        if config.attend_padding:
            mask = torch.ones_like(mask)
        ids = ids * mask
        if name == TEXT_TOWER:
            return {"input_ids": ids, "attention_mask": mask}
        pixel_values = self.of(IMAGE_TOWER, images, texts, length, pairs)["pixel_values"]
        with torch.no_grad():
            return {
                "text_hidden_states": self.model.get_text_features(ids, mask).last_hidden_state,
                "image_hidden_states": self.model.get_image_features(pixel_values).last_hidden_state,
                "attention_mask": mask,
                "text_index": torch.randint(texts, (pairs,), generator=generator),
                "image_index": torch.randint(images, (pairs,), generator=generator),
            }


def _compare(graph: Graph, path: Path, inputs: _Inputs, exact: bool) -> tuple[dict[str, float], float | None]:
    """The largest deviation of every output and the smallest cosine of the embeddings."""
    session = open_session(path, threads=torch.get_num_threads())
    deviation, cosine = dict.fromkeys(graph.outputs, 0.0), None
    for shape in _SHAPES:
        example = inputs.of(graph.name, *shape)
        with torch.no_grad():
            expected = graph.network(*(example[name] for name in graph.inputs))
        found = [torch.from_numpy(array) for array in session.run(None, feed(example))]
        for name, ours, theirs in zip(graph.outputs, found, expected, strict=True):
            if not bool(ours.isfinite().all()):
                raise RuntimeError(
                    f"{path.name}: {name} is not finite for {shape[0]} images, {shape[1]} texts; in fp16 the model's "
                    "values leave the range of float16: export fp32 or int8"
                )
            if graph.name == TEXT_TOWER and name == "last_hidden_state":
                keep = example["attention_mask"].bool()  # what stands behind a text's end is read by nothing
                ours, theirs = ours[keep], theirs[keep]
            difference = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
            deviation[name] = max(deviation[name], difference)
            if name.endswith("_embeds"):
                cosine = min(1.0 if cosine is None else cosine, float(cosine_similarity(ours, theirs).min()))
    worst = max(deviation, key=lambda name: deviation[name])
    if exact and deviation[worst] > TOLERANCE:
        raise RuntimeError(
            f"{path.name} does not compute what torch does: {worst} differs by {deviation[worst]:.1e} "
            f"(at most {TOLERANCE:.0e}); please report it with the model's config.json"
        )
    if cosine is not None and cosine < LEAST_COSINE:
        raise RuntimeError(
            f"{path.name}: an embedding's cosine with torch's is {cosine:.3f} (at least {LEAST_COSINE}): the model "
            "does not bear this precision; export fp32, or for int8 give other pictures, or none"
        )
    return deviation, cosine


def _batches(processor: R2D2Processor, images: Sequence) -> Iterator[dict[str, Tensor]]:
    """The pictures as the image tower takes them."""
    for start in range(0, len(images), _RANGE_BATCH):
        part = images[start : start + _RANGE_BATCH]
        batch = [open_image(image, **opening_of(processor)) for image in part]
        yield {"pixel_values": processor(images=batch, return_tensors="pt")["pixel_values"]}


def _loaded(model: str | PathLike | R2D2Model, processor: R2D2Processor | None) -> tuple[R2D2Model, R2D2Processor]:
    """In float32 on the CPU; a given model is copied where it is not."""
    if isinstance(model, str | PathLike):
        model_class, processor_class = two_tower_class(model, "can be exported")
        processor = processor or load_processor(processor_class, model)
        return load_whole(model_class, model, dtype=torch.float32), processor
    if processor is None:
        raise ValueError("a loaded model needs its processor: processor=R2D2Processor.from_pretrained(…)")
    if not isinstance(model, R2D2Model):
        raise ValueError(f"only R2D2, PRD2 and BriVL models can be exported, and this is a {type(model).__name__}")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        return copy.deepcopy(model).float().cpu(), processor
    return model, processor


def _save_settings(model: R2D2Model, processor: R2D2Processor, folder: Path) -> None:
    """config.json and the processor, without references to code files, which are not here."""
    config = model.config.to_diff_dict()
    config.pop("auto_map", None)
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)


def _refuse_split(folder: Path, name: str) -> None:
    """Beyond 2 GB protobuf ends, and weights go to a second file that other tools lose; no preset comes near."""
    if (folder / f"{name}.fp32.data").exists() or (folder / f"{name}.onnx.data").exists():
        raise RuntimeError(f"the {name} exceeds 1.5 GB, more than one ONNX file holds")


def _refuse_occupied(output: Path, overwrite: bool) -> None:
    refuse_no_folder(output)
    if not output.is_dir():
        return
    clean_leftovers(output)
    if not foreign_entries(output):
        return
    stamp = Stamp.read(output)
    if stamp is None or stamp.command != "export":
        try:
            OnnxManifest.load(output)  # of a release that wrote no stamps
        except OnnxFolderError:
            raise FileExistsError(
                f"{output} holds something else than an export ({', '.join(foreign_entries(output)[:3])}): name a new "
                "folder"
            ) from None
    if not overwrite:
        raise FileExistsError(f"{output} already holds an export: --overwrite replaces it")


__all__ = ["TOLERANCE", "export_onnx"]
