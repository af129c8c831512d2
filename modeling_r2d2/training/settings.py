"""What a pre-training run does, and where it starts from; imports no torch, so that help does not wait for it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..jobs.settings import RunSettings
from ..model.presets_r2d2 import BRIVL_PRESETS, PRESETS, WUKONG_PRESETS
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PART, SHARE
from ..processing.files.settings import setting


@dataclass(kw_only=True)
class StartingPoint:
    """Exactly one of `model`, `preset`, `config`, or `clip` with `roberta`; `tokenizer` where the model brings none;
    `image_size` and `vision_pooling` for `clip` alone, `ranker_layers` for a `model` without a ranker."""

    panel: ClassVar[str] = "Start"
    model: Path | None = setting(
        None,
        "Start from this R2D2, Wukong or BriVL model, checkpoint folder, or dual encoder of transformers "
        "(Chinese-CLIP, CLIP, SigLIP, AltCLIP; folder or Hub name). Where the recipe ranks and the model cannot, it "
        "gets a ranker.",
    )
    preset: str | None = setting(
        None, f"Start from random weights of a size: {', '.join([*PRESETS, *WUKONG_PRESETS, *BRIVL_PRESETS])}."
    )
    config: Path | None = setting(None, "Start from random weights of this config.json.")
    clip: str | None = setting(
        None, "Start warm: the image tower comes from this CLIP folder or Hub name, the text tower from --roberta."
    )
    roberta: str | None = setting(None, "With --clip, the BERT or RoBERTa folder or Hub name of the text tower.")
    tokenizer: str | None = setting(
        None,
        "A tokenizer's folder or vocab.txt. The default comes with the model, or is made of the texts' characters.",
    )
    image_size: int | None = setting(
        None, "With --clip, the side of the pictures in pixels. The default is the tower's own.", bounds=COUNT
    )
    vision_pooling: Literal["cls", "mean"] | None = setting(
        None, "With --clip, what pre-ranking reads of a tower whose kind does not imply it."
    )
    ranker_layers: int | None = setting(
        None, "Layers of each cross encoder that --model gets. The default is 6.", bounds=COUNT
    )
    exif_transpose: bool | None = setting(
        None,
        "Turn photographs upright by their EXIF data, or take them as they are stored, as the authors did. The model "
        "keeps which. The default is what --model says, else upright.",
    )


@dataclass(kw_only=True)
class PretrainingSettings(RunSettings):
    """What `pretrain` does; the command line has the same names.

    Args:
        augmentation: another one than the paper's, for Python alone.
        distinct_ids: batches without two pairs of one image id, where the data allow it.
        channels_last: memory layout of the pictures, see `R2D2PretrainingCollator`.
        arguments: further `TrainingArguments`, by name.

    Raises:
        ValueError: a value out of its range.
    """

    panel: ClassVar[str] = "Training"
    recipe: Any = setting(
        None,
        "The objectives: r2d2, ranker (on frozen towers), prd2 (no ranker), clip (no distillation), brivl (a queue of "
        "momentum features, no ranker); on a Wukong clip, filip, wukong or brivl. In Python also a `Recipe`. The "
        "default is what the model is made for, of a BriVL brivl.",
    )
    distil: bool | None = setting(
        None, "Distil by a momentum teacher (TgD), or not. The default is the recipe's: prd2 and brivl do."
    )
    feature_guided: bool = setting(
        False, "Distil also by features of masked pictures and texts (FgD), with a recipe that distils."
    )
    queue_size: int | None = setting(
        None,
        "Earlier pairs in the feature queue. The default is a twentieth of the data, at most 65,536, and none where "
        "that is less than a batch; of brivl 9,600, at most half of the data.",
    )
    alpha: float | None = setting(None, "The weight of the teacher in the targets. The default is 0.4.")
    momentum: float | None = setting(
        None,
        "The momentum that the teacher rises to, (1 + t) / (10 + t) after t steps until then. The default is 0.995; of "
        "brivl 0.99 from the first step on.",
    )
    publish: Literal["student", "teacher"] = setting(
        "student",
        "Whose towers the model gets at the end: the student's, or the teacher's, which are its moving average and are "
        "then evaluated too. The ranker is the student's.",
    )
    rank_from: float | None = setting(
        None,
        "The share of the run before the ranking losses begin; until then the cross encoders are not computed. The "
        "default is the recipe's, from the first step on.",
        bounds=PART,
    )
    negative_ramp: float | None = setting(
        None,
        "The share of the ranking steps over which wrong pairs become hard: drawn at random at first, by pre-ranking's "
        "own scores in the end. The default is the recipe's.",
        bounds=PART,
    )
    max_steps: int = setting(1000, "The number of steps.", "--steps", bounds=COUNT)
    warmup_steps: float = setting(
        0.05, "Steps of warm-up; below 1 a share of all steps.", "--warmup", bounds=NOT_NEGATIVE
    )
    states: Literal["float32", "float16", "int8", "none"] | None = setting(
        None,
        "With the recipe ranker, how the image tower's states of all pictures are kept in OUTPUT.states; none: they "
        "are made anew for each batch. The default is float32, as the tower gives them.",
    )
    calibrate: bool = setting(
        True,
        "With the recipe ranker, calibrate at the end, on --eval-data or, without it, on a twentieth of the pairs (at "
        "most 500) that is left out of training.",
    )
    mask_ratio: float | None = setting(
        None,
        "The share of text tokens that are masked, in the mean of texts of every length (0.15 in the paper), for MLM. "
        "The default is the recipe's: none.",
        bounds=SHARE,
    )
    whole_words: bool = setting(False, "Mask whole Chinese words, which needs jieba.")
    augment: bool = setting(True, "Augment pictures as the paper does.")
    mirror: bool = setting(True, "Mirror half of the pictures. Not where texts tell left from right.")
    eval_steps: int = setting(500, "Steps between evaluations; 0 means never.", "--eval-every", bounds=COUNT_OR_NONE)
    save_steps: int = setting(500, "Steps between checkpoints; 0 means never.", "--save-every", bounds=COUNT_OR_NONE)
    grad_cache_chunk: int = setting(
        0, "Pairs in memory at once while the whole batch is compared; 0 means all.", bounds=COUNT_OR_NONE
    )
    gradient_shares: bool = setting(
        False, "Log the share of each objective in the gradient that reaches the towers, which costs time at each log."
    )
    bf16: bool = setting(False, "Compute in bfloat16.")
    augmentation: Any = None
    distinct_ids: bool = True
    channels_last: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


__all__ = ["PretrainingSettings", "StartingPoint"]
