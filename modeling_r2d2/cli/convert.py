"""`r2d2 convert`: a checkpoint of R2D2, PRD2, Wukong or BriVL, or a dual encoder of transformers, as a model folder."""

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
        help="The official checkpoint of R2D2, PRD2, Wukong or BriVL (.pth, .ckpt), or the folder or Hub name of "
        "a Chinese-CLIP, CLIP, SigLIP or AltCLIP.",
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
    momentum: bool = setting(
        False, "Of a BriVL: take the momentum copies, the teacher of the authors' training, and not the encoders."
    )
    head: bool | None = setting(None, "Take the MLM head, or leave it out. The default takes one that fits.")
    allow_unknown: bool = setting(False, "Leave out tensors of unknown names.")
    overwrite: bool = setting(False, "Replace a model that OUT_DIR already holds.")
    source: str | None = setting(None, "Where the checkpoint was obtained, for the card.")
    exif_transpose: bool = setting(
        True, "Turn photographs upright by their EXIF data. The authors took them as they are stored."
    )


def convert(settings: ConversionSettings) -> None:
    """Convert an official R2D2, PRD2, Wukong or BriVL checkpoint, or a dual encoder of transformers; every tensor that
    is not used is listed with the reason."""
    source = settings.checkpoint
    if source.is_dir() or not (source.exists() or source.suffix in _FILES or source.is_absolute()):
        _convert_dual_encoder(settings)
        return
    from ..inference.loading import load_config
    from ..integrations.brivl import convert_brivl_to_folder, is_brivl_state_dict
    from ..integrations.checkpoints import read_checkpoint
    from ..integrations.wukong import convert_wukong_to_folder, is_wukong_state_dict
    from ..model.presets_r2d2 import BRIVL_PRESETS, PRESETS, WUKONG_PRESETS

    names = read_checkpoint(settings.checkpoint)
    options: dict[str, Any] = {
        name: getattr(settings, name) for name in ("vocab", "allow_unknown", "overwrite", "source", "exif_transpose")
    }
    convert_: Any
    config_class: Any
    if is_wukong_state_dict(names):
        from ..model.configuration_wukong import WukongConfig

        kind, config_class, presets, convert_ = "WukongModel", WukongConfig, WUKONG_PRESETS, convert_wukong_to_folder
    elif is_brivl_state_dict(names):
        from ..model.configuration_brivl import BriVLConfig

        kind, config_class, presets, convert_ = "BriVLModel", BriVLConfig, BRIVL_PRESETS, convert_brivl_to_folder
        options["momentum"] = settings.momentum
    else:
        from ..integrations.official_folder import convert_to_folder
        from ..model.configuration_r2d2 import R2D2Config

        kind, config_class, presets, convert_ = "R2D2Model", R2D2Config, PRESETS, convert_to_folder
        options["head"] = settings.head
    for option, what in (("head", "MLM head"), ("momentum", "momentum copies")):
        if getattr(settings, option) and option not in options:
            raise ValueError(f"--{option}: a {kind.removesuffix('Model')} has no {what}")
    if settings.config in presets:
        options["config"] = config_class.from_preset(settings.config)
    elif settings.config is not None:
        options["config"] = load_config(config_class, settings.config)
    report = convert_(settings.checkpoint, settings.out_dir, **options)
    kind = "R2D2ForPreTraining" if report.has_head else kind
    _finish(report, settings.out_dir, kind)


#: Suffixes of checkpoint files, which no Hub name of a model ends in.
_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".th")


def _convert_dual_encoder(settings: ConversionSettings) -> None:
    from ..integrations.dual_encoder import convert_dual_encoder_to_folder

    given = ("vocab", "config", "momentum", "head", "allow_unknown", "source")
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
