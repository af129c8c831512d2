"""`r2d2 convert`: a checkpoint of R2D2, PRD2 or Wukong, or a dual encoder of transformers, as a model folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..processing.files.settings import setting
from .options import Trusting
from .terminal import Terminal


@dataclass(kw_only=True)
class ConversionSettings(Trusting):
    """What `r2d2 convert` takes."""

    checkpoint: Path = setting(
        help="The official checkpoint of R2D2, PRD2 or Wukong (.pth, .ckpt), or the folder or Hub name of a "
        "Chinese-CLIP, CLIP, SigLIP or AltCLIP.",
        argument=True,
    )
    out_dir: Path = setting(help="The folder to write: safetensors, processor and card.", argument=True)
    vocab: Path | None = setting(
        None,
        "The vocab.txt of hfl/chinese-roberta-wwm-ext, or a folder that holds one. The default is the one in cn-clip.",
    )
    config: str | None = setting(
        None,
        "A config.json, a folder with one, or a preset. The default is inferred from the tensors.",
    )
    head: bool | None = setting(None, "Take the MLM head, or leave it out. The default takes one that fits.")
    allow_unknown: bool = setting(False, "Leave out tensors of unknown names.")
    overwrite: bool = setting(False, "Replace a model that OUT_DIR already holds.")
    source: str | None = setting(None, "Where the checkpoint was obtained, for the card.")
    exif_transpose: bool = setting(
        True, "Turn photographs upright by their EXIF data. The authors took them as they are stored."
    )


def convert(settings: ConversionSettings) -> None:
    """Convert an official R2D2, PRD2 or Wukong checkpoint, or a dual encoder of transformers; every tensor that is not
    used is listed with the reason."""
    source = settings.checkpoint
    if source.is_dir() or not (source.exists() or source.suffix in _FILES or source.is_absolute()):
        _convert_dual_encoder(settings)
        return
    from ..inference.loading import load_config
    from ..integrations.checkpoints import read_checkpoint
    from ..integrations.official_folder import convert_to_folder
    from ..integrations.wukong import convert_wukong_to_folder, is_wukong_state_dict
    from ..model.configuration_r2d2 import R2D2Config
    from ..model.configuration_wukong import WukongConfig
    from ..model.presets_r2d2 import PRESETS, WUKONG_PRESETS

    wukong = is_wukong_state_dict(read_checkpoint(settings.checkpoint))
    if wukong and settings.head:
        raise ValueError("--head: a Wukong has no MLM head")
    config_class, presets = (WukongConfig, WUKONG_PRESETS) if wukong else (R2D2Config, PRESETS)
    configuration: Any = None
    if settings.config in presets:
        configuration = config_class.from_preset(settings.config)
    elif settings.config is not None:
        configuration = load_config(config_class, settings.config)
    names = ("vocab", "allow_unknown", "overwrite", "source", "exif_transpose")
    options = {name: getattr(settings, name) for name in names} | {"config": configuration}
    if wukong:
        report = convert_wukong_to_folder(settings.checkpoint, settings.out_dir, **options)
        kind = "WukongModel"
    else:
        report = convert_to_folder(settings.checkpoint, settings.out_dir, head=settings.head, **options)
        kind = "R2D2ForPreTraining" if report.has_head else "R2D2Model"
    _finish(report, settings.out_dir, kind)


#: Suffixes of checkpoint files, which no Hub name of a model ends in.
_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".th")


def _convert_dual_encoder(settings: ConversionSettings) -> None:
    from ..integrations.dual_encoder import convert_dual_encoder_to_folder

    given = ("vocab", "config", "head", "allow_unknown", "source")
    if others := [f"--{name.replace('_', '-')}" for name in given if getattr(settings, name) not in (None, False)]:
        raise ValueError(
            f"{', '.join(others)}: of checkpoint files alone; {settings.checkpoint} says all of this about itself"
        )
    report = convert_dual_encoder_to_folder(
        str(settings.checkpoint),
        settings.out_dir,
        overwrite=settings.overwrite,
        exif_transpose=settings.exif_transpose,
    )
    _finish(report, settings.out_dir, "R2D2Model")


def _finish(report: Any, folder: Path, kind: str) -> None:
    console = Terminal()
    console.print(str(report))
    console.print(f"wrote {folder} ({kind}); load it with AutoModel.from_pretrained({str(folder)!r})")
