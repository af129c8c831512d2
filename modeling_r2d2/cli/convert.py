"""`r2d2 convert`: an official checkpoint of R2D2, PRD2 or Wukong as a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from .options import TrustRemoteCode
from .terminal import Terminal


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official R2D2, PRD2 or Wukong checkpoint (.pth, .ckpt).")],
    out_dir: Annotated[Path, typer.Argument(help="Folder to write: safetensors, processor, card.")],
    vocab: Annotated[
        Path | None,
        typer.Option(help="vocab.txt of hfl/chinese-roberta-wwm-ext or its folder; default: the one within cn-clip."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="config.json, a folder with one, or a preset; default: inferred from the tensors."),
    ] = None,
    head: Annotated[
        bool | None,
        typer.Option("--head/--no-head", help="Take an MLM head, or leave it; default: take one that fits."),
    ] = None,
    allow_unknown: Annotated[bool, typer.Option(help="Leave out tensors of unknown names.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that OUT_DIR already holds.")] = False,
    source: Annotated[str | None, typer.Option(help="For the card: where the checkpoint was obtained.")] = None,
    exif_transpose: Annotated[
        bool, typer.Option(help="Photographs upright by their EXIF data; the authors took them as they are stored.")
    ] = True,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Convert an official R2D2, PRD2 or Wukong checkpoint; every tensor that is not used is listed with the reason."""
    from ..inference.loading import load_config
    from ..integrations.official import read_checkpoint
    from ..integrations.official_folder import convert_to_folder
    from ..integrations.wukong import convert_wukong_to_folder, is_wukong_state_dict
    from ..model.configuration_r2d2 import R2D2Config
    from ..model.configuration_wukong import WukongConfig
    from ..model.presets_r2d2 import PRESETS, WUKONG_PRESETS

    wukong = is_wukong_state_dict(read_checkpoint(checkpoint))
    if wukong and head:
        raise ValueError("--head: a Wukong has no MLM head")
    config_class, presets = (WukongConfig, WUKONG_PRESETS) if wukong else (R2D2Config, PRESETS)
    if config is None:
        configuration = None
    elif config in presets:
        configuration = config_class.from_preset(config)
    else:
        configuration = load_config(config_class, config)
    settings = {
        "vocab": vocab,
        "config": configuration,
        "allow_unknown": allow_unknown,
        "overwrite": overwrite,
        "source": source,
        "exif_transpose": exif_transpose,
    }
    if wukong:
        report = convert_wukong_to_folder(checkpoint, out_dir, **settings)
        kind = "WukongModel"
    else:
        report = convert_to_folder(checkpoint, out_dir, head=head, **settings)
        kind = "R2D2ForPreTraining" if report.has_head else "R2D2Model"
    console = Terminal()
    console.print(str(report))
    console.print(
        f"wrote {out_dir} ({kind}); load it with AutoModel.from_pretrained({str(out_dir)!r})",
    )
