"""Where a pre-training run starts from: an R2D2 model, two warm towers, or random weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, BertTokenizer

from ..configuration_r2d2 import R2D2Config
from ..pretraining_r2d2 import R2D2ForPreTraining
from ..processing.processing_r2d2 import R2D2Processor
from ..processing.tokenization import build_character_tokenizer


@dataclass
class StartingPoint:
    """Exactly one of `model`, `preset`, `config`, or `clip` with `roberta`; `tokenizer` where the model brings none."""

    model: Path | None = None
    preset: str | None = None
    config: Path | None = None
    clip: str | None = None
    roberta: str | None = None
    tokenizer: str | None = None


def starting_point(
    start: StartingPoint, pairs: Any, ranker: bool | None = None
) -> tuple[R2D2ForPreTraining, R2D2Processor]:
    """Model and processor to begin with.

    Without any tokenizer the vocabulary is made of the characters of `pairs`, which fits random weights only.
    `ranker` False leaves the ranker out of a preset, a configuration or warm towers; None: as they say.

    Raises:
        ValueError: none or several starting points, or a tokenizer that does not fit the model.
    """
    ways = [start.model, start.preset, start.config, start.clip or start.roberta]
    if sum(way is not None for way in ways) != 1 or (start.clip is None) != (start.roberta is None):
        raise ValueError("name one starting point: --model, --preset, --config, or --clip together with --roberta")
    if start.model is not None:
        processor = R2D2Processor.from_pretrained(start.model)
        return R2D2ForPreTraining.from_pretrained(start.model), processor
    if start.clip is not None:
        without = {} if ranker in (None, True) else {"cross_encoder_config": None}
        model = R2D2ForPreTraining.from_vision_text_pretrained(start.clip, start.roberta, **without)
        return model, _processor(read_tokenizer(start.tokenizer or start.roberta), model.config)
    config = R2D2Config.from_preset(start.preset) if start.preset else R2D2Config.from_pretrained(start.config)
    if ranker is False:
        config.cross_encoder_config = None
    if start.tokenizer is not None:
        tokenizer = read_tokenizer(start.tokenizer)
    elif not hasattr(pairs, "all_texts"):
        raise ValueError("a vocabulary cannot be made from a stream: name one by --tokenizer")
    else:
        tokenizer = build_character_tokenizer(pairs.all_texts())
        config.text_config.vocab_size = len(tokenizer)
    return R2D2ForPreTraining(config), _processor(tokenizer, config)


def read_tokenizer(source: str | Path):
    """A tokenizer from a folder, a Hub name, or a BERT `vocab.txt`."""
    path = Path(source)
    if path.is_file():
        return BertTokenizer(vocab=str(path))
    if (path / "vocab.txt").is_file() and not (path / "tokenizer_config.json").is_file():
        return BertTokenizer(vocab=str(path / "vocab.txt"))
    return AutoTokenizer.from_pretrained(str(source))


def _processor(tokenizer, config: R2D2Config) -> R2D2Processor:
    size = getattr(config.vision_config, "image_size", None) or 224
    return R2D2Processor.build(tokenizer, image_size=size, max_length=config.max_text_length)
