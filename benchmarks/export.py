"""Exported graphs beside torch: size, speed, and what a lower precision costs in recall on the demo set.

    python benchmarks/export.py [--quick] [--model runs/benchmarks/demo_seeds/seed-0]

Speed is of towers and ranker alone, on tensors that are ready; recall is of the whole evaluation on the vendors that
training never saw. A second model, of the size of ViT-B/16 and BERT-base with random weights, shows the speed where
arithmetic and not the calls decides; its recall would mean nothing.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import DEMO_MODEL, Check, Table, arguments, finish, interleave, median, ratio
from torch import Tensor

from modeling_r2d2 import R2D2Config, R2D2Model, R2D2OnnxModel, R2D2Processor, export_onnx
from modeling_r2d2.cli.demo_settings import DemoSettings
from modeling_r2d2.evaluation import evaluate_retrieval
from modeling_r2d2.processing.datasets.emoji import EmojiPairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer

PARTS = ("text", "image", "ranker")
WANTED = 1.8
#: points of mean recall, of either stage, in the mean over the vendors
MOST_LOST = 0.5
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def inputs_of(model: R2D2Model, processor: R2D2Processor, batch: int, pairs: int, length: int) -> dict[str, dict]:
    """Random inputs of every part: `batch` texts of `length` tokens, `batch` pictures, `pairs` of both."""
    generator = torch.Generator().manual_seed(0)
    size = processor.image_processor.size
    ids = torch.randint(5, model.config.text_config.vocab_size, (batch, length), generator=generator)
    inputs = {
        "text": {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        "image": {"pixel_values": torch.randn(batch, 3, size["height"], size["width"], generator=generator)},
    }
    index = torch.randint(batch, (2, pairs), generator=generator)
    inputs["ranker"] = {
        "text_hidden_states": model.get_text_features(**inputs["text"]).last_hidden_state,
        "image_hidden_states": model.get_image_features(**inputs["image"]).last_hidden_state,
        "attention_mask": inputs["text"]["attention_mask"],
        "text_index": index[0],
        "image_index": index[1],
    }
    return inputs


def calls_of(model: Any, inputs: dict[str, dict[str, Tensor]]) -> dict[str, Callable[[], Any]]:
    """A call of every part."""
    return {
        "text": partial(model.get_text_features, **inputs["text"]),
        "image": partial(model.get_image_features, **inputs["image"]),
        "ranker": partial(model.rank, **inputs["ranker"], cls_only=True),
    }


def compiled_calls(model: R2D2Model, inputs: dict) -> tuple[dict[str, Callable] | None, str]:
    """The parts through torch.compile, and a note; None where the inductor does not work on this machine."""
    parts = {}
    names = {"text": "get_text_features", "image": "get_image_features", "ranker": "rank"}
    try:
        for part, name in names.items():
            options = {"cls_only": True} if part == "ranker" else {}
            parts[part] = partial(torch.compile(getattr(model, name)), **inputs[part], **options)
            parts[part]()
    except Exception as error:  # whatever the compiler, or the C++ compiler behind it, has to say
        return None, f"torch.compile: not measured, {part} does not compile here ({type(error).__name__})"
    return parts, "torch.compile: inductor, compiled for these shapes before the clock runs"


def megabytes(folder: Path) -> float:
    """Of the graphs of an export."""
    return sum(path.stat().st_size for path in folder.glob("*.onnx")) / 1e6


@torch.inference_mode()
def speeds(
    name: str, model: R2D2Model, exported: dict[str, Path], inputs: dict, rounds: int, compiling: bool
) -> tuple[list[dict], list[str]]:
    """A row for torch and for each export: MB, milliseconds of torch, and how often as fast as it."""
    calls = {"torch fp32": calls_of(model, inputs)}
    notes = []
    if compiling:
        with torch.inference_mode(False), torch.no_grad():
            compiled, note = compiled_calls(model, inputs)
        notes.append(f"{name}, {note}")
        if compiled is not None:
            calls["torch.compile"] = compiled
    for precision, folder in exported.items():
        calls[f"ONNX {precision}"] = calls_of(R2D2OnnxModel(folder, threads=torch.get_num_threads()), inputs)
    size = sum(parameter.numel() * 4 for parameter in model.parameters()) / 1e6
    rows = {each: {"model": name, "runs as": each, "MB": size} for each in calls}
    for precision, folder in exported.items():
        rows[f"ONNX {precision}"]["MB"] = megabytes(folder)
    for part in PARTS:
        seconds = interleave({each: parts[part] for each, parts in calls.items()}, rounds, warmup=2)
        for each, measured in seconds.items():
            rows[each][f"{part}, ms"] = 1e3 * median(measured)
            rows[each][f"{part} ×"] = ratio(seconds["torch fp32"], measured)
    return list(rows.values()), notes


def recalls(models: dict[str, Any], processor: R2D2Processor, vendors: list[str], candidates: int) -> dict[str, dict]:
    """Mean recall in percent by both stages, the mean over the vendors."""
    galleries = [EmojiPairs([vendor]) for vendor in vendors]
    found = {}
    for name, model in models.items():
        results = [
            evaluate_retrieval(
                model,
                processor,
                [gallery.image(index) for index in range(len(gallery))],
                gallery.names(),
                candidates=candidates,
                batch_size=100,
            )
            for gallery in galleries
        ]
        found[name] = {
            stage: sum(getattr(result, stage)["mean_recall"] for result in results) / len(results)
            for stage in ("pre_ranking", "two_stage")
        }
    return found


def demo_rows(folder: Path, work: Path, rounds: int, compiling: bool) -> tuple[list[dict], list[str], list[Check]]:
    """The trained model: every precision, with recall."""
    model, processor = R2D2Model.from_pretrained(folder).eval(), R2D2Processor.from_pretrained(folder)
    kept_out = EmojiPairs(["samsung"], calibration="only")  # neither trained nor tested on
    images = [kept_out.image(index) for index in range(len(kept_out))]
    exported = {}
    for precision in ("fp32", "fp16", "int8"):
        exported[precision] = work / precision
        export_onnx(folder, work / precision, precision, images=images if precision == "int8" else None)
    with torch.no_grad():
        inputs = inputs_of(model, processor, batch=64, pairs=256, length=8)
    rows, notes = speeds("demo", model, exported, inputs, rounds, compiling)
    settings = DemoSettings()
    models = {"torch fp32": model} | {f"ONNX {name}": R2D2OnnxModel(path) for name, path in exported.items()}
    found = recalls(models, processor, list(settings.held_out), settings.candidates)
    for row in rows:
        if row["runs as"] in found:
            for stage, name in (("pre_ranking", "pre-ranking"), ("two_stage", "ranking")):
                row[name] = found[row["runs as"]][stage]
    int8 = next(row for row in rows if row["runs as"] == "ONNX int8")
    checks = [Check(f"{part} of the demo in int8, torch fp32 = 1", int8[f"{part} ×"], WANTED, ">=") for part in PARTS]
    for stage, name in (("pre_ranking", "pre-ranking"), ("two_stage", "pre-ranking + ranking")):
        lost = found["torch fp32"][stage] - found["ONNX int8"][stage]
        checks.append(Check(f"points of mean recall lost in int8, {name}", lost, MOST_LOST, "<"))
    notes.append(
        f"recall: mean of R@1, R@5, R@10 both ways over {' and '.join(settings.held_out)}, {settings.candidates} "
        f"candidates; ranges of the convolutions in int8 from {len(images)} Samsung pictures kept out of training"
    )
    return rows, notes, checks


def large_rows(work: Path, rounds: int, compiling: bool, quick: bool) -> tuple[list[dict], list[str], list[Check]]:
    """ViT-B/16 and BERT-base with random weights: float32 and int8."""
    torch.manual_seed(0)
    tokenizer = build_character_tokenizer(["一只小狗在草地上"])
    if quick:
        config = R2D2Config(
            vision_config={**TINY, "image_size": 32, "patch_size": 16},
            text_config={**TINY, "vocab_size": 99},
            cross_encoder_config=TINY,
            projection_dim=16,
        )
    else:
        config = R2D2Config.from_preset("r2d2-vit-b-16")
    name = "tiny" if quick else "ViT-B/16"
    model = R2D2Model(config).eval()
    processor = R2D2Processor.build(tokenizer, image_size=config.vision_config.image_size)
    exported = {}
    for precision in ("fp32", "int8"):
        exported[precision] = work / f"large-{precision}"
        export_onnx(model, exported[precision], precision, processor)
    with torch.no_grad():
        batch, pairs, length = (2, 3, 5) if quick else (8, 8, 24)
        inputs = inputs_of(model, processor, batch, pairs, length)
    rows, notes = speeds(name, model, exported, inputs, rounds, compiling)
    int8 = rows[-1]
    checks = [Check(f"{part} of {name} in int8, torch fp32 = 1", int8[f"{part} ×"], WANTED, ">=") for part in PARTS]
    return rows, notes, checks


def main(argv: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = arguments(__doc__, rounds=15)
    parser.add_argument(
        "--model", type=Path, default=DEMO_MODEL, help="trained demo model (default: seed 0 of demo_seeds)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(argv)
    torch.set_num_threads(1 if options.quick else options.threads)
    if not options.quick and not (options.model / "config.json").is_file():
        parser.error(f"{options.model} holds no model: run benchmarks/demo_seeds.py or `make demo`, or name one")
    rounds = 2 if options.quick else options.rounds
    compiling = not options.quick and not options.no_compile
    with tempfile.TemporaryDirectory() as folder:
        rows, notes, checks = large_rows(Path(folder), rounds, compiling, options.quick)
        if not options.quick:
            first = demo_rows(options.model, Path(folder), rounds, compiling)
            rows, notes, checks = first[0] + rows, first[1] + notes, first[2] + checks
    columns = {"model": "", "runs as": "", "MB": ".1f"}
    columns |= {f"{part}{what}": spec for part in PARTS for what, spec in ((", ms", ".1f"), (" ×", ".2f"))}
    columns |= {"pre-ranking": ".2f", "ranking": ".2f"}
    table = Table(
        "export",
        "Exported graphs: size, speed, recall",
        "Towers and ranker in torch (float32) and as ONNX graphs, the same number of threads for all; ×: how often as "
        "fast as torch in float32, the median over the rounds of a round's own ratio. MB: of the graphs, or of torch's "
        "parameters. Recall in percent.",
        columns,
        rows,
        {"batch": "64 texts or pictures, 256 pairs (demo); 8 and 8 (ViT-B/16)", "rounds": rounds},
        checks,
        notes,
        quick=options.quick,
    )
    return finish(table, options.tables)


if __name__ == "__main__":
    sys.exit(main())
