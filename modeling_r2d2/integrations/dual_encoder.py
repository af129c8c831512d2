"""A dual encoder of transformers (Chinese-CLIP, CLIP, SigLIP, AltCLIP) as a model folder of R2D2."""

from os import PathLike
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..hub_cards.cards import PIPELINE_TAG, TAGS
from ..inference.dual_encoders import DualEncoderKind, require_dual_encoder
from ..inference.identity import weights_digest
from ..inference.loading import config_values, load_dual_encoder, load_processor
from ..model.configuration_r2d2 import R2D2Config
from ..model.modeling_r2d2 import R2D2Model
from ..model.processing_r2d2 import R2D2Processor
from ..processing.files.progress import bar
from .checkpoints import ConversionReport
from .official_folder import refuse_occupied, write_converted


def convert_dual_encoder_to_folder(
    source: str | PathLike,
    output_dir: str | PathLike,
    *,
    overwrite: bool = False,
    exif_transpose: bool = True,
) -> ConversionReport:
    """Convert a dual encoder of transformers into a folder that `AutoModel` and `AutoProcessor` load: an R2D2 without a
    ranker, whose cosines and logits are those of the source's own class, with the source's own preprocessing.

    Args:
        source: folder or Hub name of a Chinese-CLIP, CLIP, SigLIP (SigLIP 2 of a fixed image size too) or AltCLIP.
        output_dir: made if needed.
        overwrite: allow a folder that already holds a model, which is replaced, or something else, which stays.
        exif_transpose: False takes photographs as they are stored, see `R2D2Processor.build`.

    Returns:
        What became of every tensor.

    Raises:
        ValueError: another model, one that lacks weights, or whose tokenizer or image processor does not fit.
        FileExistsError: the folder already holds a model, other files, or a README.md of somebody's.
        OSError: no such source.
    """
    output_dir = Path(output_dir)
    refuse_occupied(output_dir, overwrite)
    kind = require_dual_encoder(config_values(source), source)
    shown = bar(doing="converting", total=3, unit="steps")
    model, _, origins = load_dual_encoder(R2D2Model, source)
    shown.update()
    processor = load_processor(R2D2Processor, source)
    if not exif_transpose:
        processor.image_processor.exif_transpose = False
    report = ConversionReport(used=origins.used, unused=origins.unused)
    card = _card(output_dir, model, report, kind, source)
    shown.update()
    with shown:
        write_converted(output_dir, model, processor, card)
    return report


def _card(
    folder: Path, model: R2D2Model, report: ConversionReport, kind: DualEncoderKind, source: str | PathLike
) -> ModelCard:
    config: R2D2Config = model.config
    # a folder's name alone: its path is nobody's business; of a Hub name all
    local = Path(source).exists()
    origin = Path(source).resolve().name if local else str(source)
    # a SigLIP of a hundred thousand tokens and more is a SigLIP 2
    multilingual = kind.architecture == "SiglipModel" and config.text_config.vocab_size > 100_000
    data = ModelCardData(
        language=["multilingual"] if multilingual else list(kind.languages),
        license="other",
        license_name="of-the-source",
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG,
        base_model=None if local else origin,
        tags=["prd2", *(tag for tag in TAGS if tag != "chinese")],
    )
    name = folder.resolve().name
    texts = '["a cat", "a dog"]' if data.language == ["en"] else '["一只猫", "一只狗"]'
    bias = f", logit bias {config.logit_bias:.6g}" if config.logit_bias else ""
    padding = ", padding is read" if config.attend_padding else ""
    unused = "; ".join(f"{why}: {', '.join(f'`{each}`' for each in names)}" for why, names in _unused(report))
    return ModelCard(
        f"""---
{data.to_yaml()}
---

# {name}

`{origin}`, a `{kind.architecture}`, as an R2D2 without a ranker. Nothing was trained here: the weights moved over value
by value, and cosines and logits are those of the source's own class. Pictures and texts are prepared as the source's
own processor does it.

| | |
|---|---|
| source | `{origin}` |
| class of the source | `{kind.architecture}` |
| digest of its weights here | `{weights_digest(model)}` |
| parameters | {sum(parameter.numel() for parameter in model.parameters()):,} |
| image tower | {config.vision_config.model_type}, {config.vision_config.image_size} px |
| text tower | {config.text_config.model_type}, at most {config.max_text_length} tokens{padding} |
| embeddings | {config.projection_dim} dimensions |
| temperature | {model.bounded_temperature().item():.6g}{bias} |

**License:** that of the source; see its own card before you use or share this model.

```python
import modeling_r2d2
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}")
processor = AutoProcessor.from_pretrained("{name}")
inputs = processor(images=Image.open("picture.png"), text={texts}, return_tensors="pt")
print(model(**inputs).logits_per_image)
```

{len(report.used)} tensors of the source are used. Not used: {unused or "none"}.
"""
    )


def _unused(report: ConversionReport) -> list[tuple[str, list[str]]]:
    return sorted(report.unused_by_reason().items())


__all__ = ["convert_dual_encoder_to_folder"]
