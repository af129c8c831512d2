"""Where a pre-training run starts from: an R2D2, Wukong or BriVL model, a dual encoder, two warm towers, or random
weights."""

from pathlib import Path
from typing import Any

from transformers import BertTokenizer

from ..inference.loading import load_config, load_processor, load_tokenizer, load_whole, model_type
from ..integrations.warm_preprocessing import warm_processor
from ..model.configuration_brivl import BriVLConfig
from ..model.configuration_r2d2 import R2D2Config
from ..model.configuration_wukong import WukongConfig
from ..model.modeling_r2d2 import RANKER
from ..model.modeling_wukong import WukongModel
from ..model.presets_r2d2 import BRIVL_PRESETS, PRESETS, WUKONG_PRESETS
from ..model.pretraining_brivl import BriVLForPreTraining
from ..model.pretraining_r2d2 import R2D2ForPreTraining
from ..model.processing_brivl import BriVLProcessor
from ..model.processing_r2d2 import R2D2Processor
from ..model.processing_wukong import WukongProcessor
from ..processing.files.images import turns_upright
from ..processing.tokenization import build_character_tokenizer
from .settings import StartingPoint

_KINDS: dict[str | None, tuple[Any, Any, Any]] = {
    "r2d2": (R2D2Config, R2D2ForPreTraining, R2D2Processor),
    "wukong": (WukongConfig, WukongModel, WukongProcessor),
    "brivl": (BriVLConfig, BriVLForPreTraining, BriVLProcessor),
}


def starting_point(
    start: StartingPoint, pairs: Any, ranker: bool | None = None
) -> tuple[R2D2ForPreTraining | WukongModel, R2D2Processor]:
    """Model and processor to begin with; presets, configurations and models of Wukong give a `WukongModel`, those of
    BriVL a `BriVLForPreTraining`.

    Without any tokenizer the vocabulary is made of the characters of `pairs`, which fits random weights only.
    `ranker` False leaves the ranker out of a preset, a configuration or warm towers, True gives a model without one a
    ranker of random weights beside its towers; None: as they say.

    Raises:
        ValueError: none or several starting points, an unknown preset, a tokenizer that does not fit the model, or
            layers of a ranker that is there or not wanted.
    """
    model, processor = _start(start, pairs, ranker)
    if start.exif_transpose not in (None, turns_upright(processor)):
        processor.image_processor.exif_transpose = start.exif_transpose
    return model, processor


def _start(
    start: StartingPoint, pairs: Any, ranker: bool | None
) -> tuple[R2D2ForPreTraining | WukongModel, R2D2Processor]:
    ways = [start.model, start.preset, start.config, start.clip or start.roberta]
    if sum(way is not None for way in ways) != 1 or (start.clip is None) != (start.roberta is None):
        raise ValueError("name one starting point: --model, --preset, --config, or --clip together with --roberta")
    if start.clip is None and (start.image_size is not None or start.vision_pooling is not None):
        raise ValueError("--image-size and --vision-pooling are of a warm start (--clip): other models say both")
    if start.model is None and start.ranker_layers is not None:
        raise ValueError("--ranker-layers is of a ranker beside the towers of --model: other starts say it themselves")
    if start.model is not None:
        if start.tokenizer is not None:
            raise ValueError(
                "--model comes with its tokenizer, to which its text tower is trained: leave --tokenizer out"
            )
        config_class, model_class, processor_class = _classes(start.model)
        if model_class is WukongModel:
            return load_whole(WukongModel, start.model), load_processor(WukongProcessor, start.model)
        own = load_config(config_class, start.model)
        fresh: tuple[str, ...] = ("mlm_head.", "feature_heads.")
        if ranker and own.cross_encoder_config is None:
            own.add_ranker(start.ranker_layers)
            fresh += tuple(f"{part}." for part in RANKER)
        elif start.ranker_layers is not None:
            raise ValueError(
                f"--ranker-layers is of a ranker that is made anew, and {start.model} "
                f"{'has one' if own.cross_encoder_config else 'gets none from this recipe'}: leave it out"
            )
        model = load_whole(model_class, start.model, fresh, config=own)
        return model, load_processor(processor_class, start.model)
    if start.clip is not None and start.roberta is not None:
        changes: dict[str, Any] = {} if ranker in (None, True) else {"cross_encoder_config": None}
        if start.vision_pooling is not None:
            changes["vision_pooling"] = start.vision_pooling
        model = R2D2ForPreTraining.from_vision_text_pretrained(start.clip, start.roberta, **changes)
        tokenizer = read_tokenizer(start.tokenizer or start.roberta)
        return model, warm_processor(start.clip, tokenizer, model.config, start.image_size)
    config = _configuration(start)
    if ranker is False and isinstance(config, R2D2Config):
        config.cross_encoder_config = None
    if start.tokenizer is not None:
        tokenizer = read_tokenizer(start.tokenizer)
    elif not hasattr(pairs, "all_texts"):
        raise ValueError("a vocabulary cannot be made from a stream: name one by --tokenizer")
    else:
        tokenizer = build_character_tokenizer(pairs.all_texts())
        config.text_config.vocab_size = len(tokenizer)
        if isinstance(config, WukongConfig | BriVLConfig):  # they read it
            config.text_config.pad_token_id = tokenizer.pad_token_id
        if isinstance(config, WukongConfig):
            config.text_config.bos_token_id = tokenizer.cls_token_id
            config.text_config.eos_token_id = tokenizer.sep_token_id
    _, model_class, processor_class = _KINDS[config.model_type]
    size = getattr(config.vision_config, "image_size", None) or 224
    processor = processor_class.build(tokenizer, image_size=size, max_length=config.max_text_length)
    return model_class(config), processor


def _configuration(start: StartingPoint) -> Any:
    """Of a preset or a configuration's file."""
    if start.config is not None:
        return load_config(_classes(start.config)[0], start.config)
    for kind, presets in ((R2D2Config, PRESETS), (WukongConfig, WUKONG_PRESETS), (BriVLConfig, BRIVL_PRESETS)):
        if start.preset in presets:
            return kind.from_preset(start.preset)
    known = ", ".join([*PRESETS, *WUKONG_PRESETS, *BRIVL_PRESETS])
    raise ValueError(f"unknown preset {start.preset!r}; there are {known}")


def _classes(source: str | Path) -> tuple[Any, Any, Any]:
    """Of the configuration, the model in training and the processor that a folder, or a config.json, is of."""
    return _KINDS.get(model_type(source), _KINDS["r2d2"])


def read_tokenizer(source: str | Path):
    """A tokenizer from a folder, a Hub name, or a BERT `vocab.txt`."""
    path = Path(source)
    if path.is_file():
        return BertTokenizer(vocab=str(path))
    if (path / "vocab.txt").is_file() and not (path / "tokenizer_config.json").is_file():
        return BertTokenizer(vocab=str(path / "vocab.txt"))
    return load_tokenizer(source)
