"""What a model folder says of itself: configuration, size of the weights, training, where the weights come from."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from ..inference.finite import require_finite, require_finite_file
from ..inference.folders import OWN_TYPES, is_index, read_json_object
from ..inference.loading import load_config
from ..jobs.record import FINETUNING_FILE, RunRecord
from .wording import TRAINING_SHOWN

Origin = Literal["pre-trained", "fine-tuned", "converted"]
#: Class that a folder was saved by -> what it is for on the Hub, and what the card calls its task.
ARCHITECTURES: dict[str, tuple[str, str]] = {
    "R2D2Model": ("zero-shot-image-classification", "retrieval"),
    "R2D2ForPreTraining": ("zero-shot-image-classification", "retrieval"),
    "R2D2ForImageTextRetrieval": ("zero-shot-image-classification", "retrieval"),
    "R2D2ForImageTextMatching": ("zero-shot-image-classification", "matching"),
    "R2D2ForImageClassification": ("image-classification", "classification"),
    "R2D2ForConditionalGeneration": ("image-text-to-text", "captioning"),
    "BriVLModel": ("zero-shot-image-classification", "retrieval"),
    "BriVLForPreTraining": ("zero-shot-image-classification", "retrieval"),
    "BriVLForImageTextRetrieval": ("zero-shot-image-classification", "retrieval"),
    "BriVLForImageTextMatching": ("zero-shot-image-classification", "matching"),
    "WukongModel": ("zero-shot-image-classification", "retrieval"),
}
#: What is shown of the training arguments, in this order.
ARGUMENTS = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "bf16",
    "fp16",
    "seed",
)
#: Saved with the weights and no parameters: statistics of batch norms.
_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")
#: The origin table of a dual encoder's card, in both languages: what stands there -> what it is called here.
_DUAL_ENCODER = (
    {"source": "source", "class of the source": "architecture", "digest of its weights here": "weights"},
    {"来源模型": "source", "来源模型的类": "architecture", "此处权重的摘要": "weights"},
)
_FINETUNING = (
    *("num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed"),
)


@dataclass
class ModelFacts:
    """A model folder. What is None or absent is unknown.

    Args:
        architecture: class that saved it.
        kind: R2D2, PRD2, Wukong or BriVL.
        pipeline_tag: see `ARCHITECTURES`.
        task: see `ARCHITECTURES`.
        parameters: of the safetensors files.
        weight_bytes: of the safetensors files.
        dtypes: of the safetensors files.
        origin: how the weights came about.
        training: name -> value, names as in `TrainingArguments`, and `steps_made`, `final_loss`, `losses`,
            `objectives`, `published`, `task`, `data`, `trained_share`.
        record: what the run wrote of its data and of where it began.
        conversion: `file`, `sha256`, `source` of a converted checkpoint; of a dual encoder of transformers its
            `source`, `architecture`, the digest of its `weights`, and where the Hub has it `base_model`.
        languages: that the model reads; of a converted dual encoder those of the card that it came with.
        notes: what could not be read.
    """

    folder: Path
    config: PreTrainedConfig
    architecture: str
    kind: str
    pipeline_tag: str
    task: str
    parameters: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    origin: Origin | None = None
    training: dict[str, Any] = field(default_factory=dict)
    conversion: dict[str, str | None] = field(default_factory=dict)
    languages: list[str] = field(default_factory=lambda: ["zh"])
    record: RunRecord | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def can_rank(self) -> bool:
        """Whether the weights hold a ranker that gives match probabilities."""
        ranks = getattr(self.config, "cross_encoder_config", None) is not None
        return ranks and self.task in ("retrieval", "matching")


def read_facts(folder: str | PathLike) -> ModelFacts:
    """Look at a model folder, without running code; its weights are read once, for NaN.

    Raises:
        NotFiniteError: weights, or the last logged loss, are not finite.
        FileNotFoundError: no config.json, or no safetensors.
        ValueError: a model that is not of this package.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is a diffusers pipeline: cards are made for R2D2, PRD2, Wukong and BriVL folders")
    if is_index(folder):
        raise ValueError(f"{folder} is not a model folder; it is an index: name the model that it was made with")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
    config = load_config(AutoConfig, folder)
    architecture = (config.architectures or ["R2D2Model"])[0]
    if config.model_type not in OWN_TYPES or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"{folder} holds a {architecture} ({config.model_type}); cards are made for {known}")
    kind = {"wukong": "Wukong", "brivl": "BriVL"}.get(config.model_type)
    if kind is None:
        kind = "PRD2" if config.cross_encoder_config is None else "R2D2"
    parameters, size, dtypes = _weights(folder)
    facts = ModelFacts(folder, config, architecture, kind, *ARCHITECTURES[architecture], parameters, size, dtypes)
    facts.conversion = _conversion(folder / "README.md")
    if facts.conversion:
        facts.origin = "converted"
    if "architecture" in facts.conversion:
        header = ModelCard.load(folder / "README.md").data
        facts.languages = [header.language] if isinstance(header.language, str) else header.language or facts.languages
        facts.conversion["base_model"] = header.base_model
    _read_training(facts)
    return facts


def _weights(folder: Path) -> tuple[int, int, tuple[str, ...]]:
    """Parameters, bytes and dtypes, of weights that are finite."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no safetensors file: save the model by save_pretrained")
    count, dtypes = 0, set()
    for path in files:
        require_finite_file(path)
        with safe_open(path, framework="np") as held:
            for name in held.keys():  # noqa: SIM118 (not a mapping)
                part = held.get_slice(name)
                if name.endswith(_BUFFERS):
                    continue
                count += math.prod(part.get_shape())
                dtypes.add(part.get_dtype())
    return count, sum(path.stat().st_size for path in files), tuple(sorted(dtypes))


def _conversion(card: Path) -> dict[str, str | None]:
    """The origin table of the card that a conversion wrote."""
    if not card.is_file():
        return {}
    text = card.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([^|]+) \| `?(.*?)`? \|$", text, re.MULTILINE))
    for names in _DUAL_ENCODER:
        if rows.keys() >= names.keys():
            return {what: rows[name] for name, what in names.items()}
    if "SHA-256" not in rows:
        return {}
    source = rows.get("obtained from") or rows.get("来源")
    unknown = source is None or source in ("unknown", "未知") or source.startswith("not stated")
    return {
        "file": rows.get("file") or rows.get("文件"),
        "sha256": rows["SHA-256"],
        "source": None if unknown else source,
    }


def _read_training(facts: ModelFacts) -> None:
    folder, training = facts.folder, facts.training
    if (folder / "training_args.bin").is_file():
        facts.origin = "pre-trained"
        arguments = read_training_arguments(folder / "training_args.bin")
        training |= {name: arguments[name] for name in ARGUMENTS if arguments.get(name) is not None}
    state = _trainer_state(folder)
    if state:
        facts.origin = "pre-trained"
        training["steps_made"] = state.get("global_step")
        training.setdefault("max_steps", state.get("max_steps"))
        training.setdefault("per_device_train_batch_size", state.get("train_batch_size"))
        logged = [entry for entry in state.get("log_history", []) if "loss" in entry]
        if logged:
            require_finite({"loss": float(logged[-1]["loss"])}, f"{folder}: the last log of training")
            training["final_loss"] = round(float(logged[-1]["loss"]), 4)
            training["losses"] = ", ".join(sorted(name for name in logged[-1] if name.startswith("loss_")))
    if (record := RunRecord.read(folder)) is not None and not (folder / FINETUNING_FILE).is_file():
        facts.record, facts.origin = record, "pre-trained"
        training["objectives"] = record.objectives
        training["published"] = record.published
        training["data"] = "; ".join(each.counted() for each in record.data)
    if (folder / FINETUNING_FILE).is_file():
        facts.record = RunRecord.of_finetuning(folder)
        held = read_json_object(folder / FINETUNING_FILE)
        facts.origin = "fine-tuned"
        settings, report = held["settings"], held["report"]
        training |= {name: settings[name] for name in _FINETUNING if settings.get(name) is not None}
        training["task"] = report["task"]
        training["trained_share"] = f"{report['method']}: {sum(report['trainable'].values()):,}"
        if facts.record is not None and facts.record.data:
            training["data"] = "; ".join(each.counted() for each in facts.record.data)
        else:  # the report's texts may be a sample: they are not stated
            training["data"] = f"{report['data']['pairs']:,} pairs, {report['data']['images']:,} pictures"
        training["max_steps"] = report["epochs"] * report["steps_per_epoch"]
    elif (folder / "results.json").is_file():
        held = read_json_object(folder / "results.json")
        settings = held.get("settings", {}) if isinstance(held, dict) else {}
        for name in TRAINING_SHOWN:
            if name in settings:
                training.setdefault(name, settings[name])
        if isinstance(held, dict) and "training_seconds" in held:
            training["seconds"] = held["training_seconds"]
            facts.origin = "pre-trained"
    for name in [name for name, value in training.items() if value in (None, "", -1)]:
        del training[name]


def _trainer_state(folder: Path) -> dict[str, Any]:
    """The trainer's state: of the folder, else of its last checkpoint."""
    found = [folder / "trainer_state.json"]
    numbered = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    found += sorted(numbered, key=lambda path: -int(path.parent.name[11:]))
    path = next((path for path in found if path.is_file()), None)
    return {} if path is None else read_json_object(path)


class _Inert:
    """Stands in for every class of a pickle: keeps what it was made of, and runs nothing."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> None:
        return None


def read_training_arguments(path: str | PathLike) -> dict[str, Any]:
    """The plain values of a `training_args.bin`, which is a pickle: no class of it is imported and no code is run.

    Raises:
        ValueError: not such a file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                held = _InertUnpickler(file).load()
    except (OSError, MemoryError):
        raise
    except Exception as error:  # other bytes make an unpickler raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path} holds no training arguments ({reason}): move it out of the folder") from error
    if not isinstance(held, _Inert):
        raise ValueError(f"{path} holds no training arguments but a {type(held).__name__}: move it out of the folder")
    return {name: _plain(value) for name, value in vars(held).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, _Inert):
        return value.values[0] if len(getattr(value, "values", ())) == 1 else None
    return value if isinstance(value, (str, int, float, bool, type(None), list, tuple, Mapping)) else None


__all__ = ["ModelFacts", "read_facts", "read_training_arguments"]
