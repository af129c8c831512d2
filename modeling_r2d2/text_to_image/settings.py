"""What a text-to-image training run does."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from ..jobs.settings import RunSettings
from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, SHARE
from ..processing.files.settings import setting

#: What may change between a run and its continuation.
_FREE = {
    *("output", "resume", "overwrite", "dataloader_num_workers", "caption_cache_mb", "image_cache_mb", "logging_steps"),
    *("save_steps", "save_total_limit", "sample_every", "sample_prompts", "sample_seeds", "sample_steps"),
    "guidance_scale",
}


@dataclass(kw_only=True)
class TextToImageSettings(RunSettings):
    """Settings of `train_text_to_image`; the command line has the same names.

    Raises:
        ValueError: a value out of its range.
    """

    panel: ClassVar[str] = "Training"
    max_steps: int = setting(1000, "The number of steps.", "--steps", bounds=COUNT)
    max_minutes: float | None = setting(
        None,
        "Stop training after so long; 0 means no limit. The learning rate then follows the clock where it is ahead of "
        "the steps, so that the run depends on the speed of the machine and cannot be repeated bit for bit.",
        bounds=NOT_NEGATIVE,
    )
    weight_decay: float = setting(0.01, "The weight decay of AdamW.", bounds=NOT_NEGATIVE)
    warmup: float = setting(0.02, "The share of the run in which the learning rate rises.", bounds=SHARE)
    cooldown: float = setting(0.3, "The share of the run in which it falls, as a cosine.", bounds=SHARE)
    resolution: int = setting(
        32, "The side of the training pictures in pixels; they are cropped to the center square.", bounds=COUNT
    )
    flip: float = setting(0.0, "The probability that a picture is mirrored.", bounds=SHARE)
    caption_dropout: float = setting(
        0.1, "The share of captions that are replaced by the empty text, which guidance needs.", bounds=SHARE
    )
    min_snr_gamma: float | None = setting(
        5.0,
        "Gamma of the loss weights (arXiv 2303.09556). With 0 every timestep weighs the same.",
        bounds=NOT_NEGATIVE,
    )
    ema_decay: float = setting(
        0.999, "The decay of the average of the weights that is sampled from and saved.", bounds=SHARE
    )
    train: Literal["all", "cross_attention", "lora"] = setting(
        "all", "What trains of the UNet: all, its cross-attention and text projection, or adapters of its attention."
    )
    text_encoder: Literal["frozen", "lora", "all"] = setting("frozen", "What trains of the text encoder.")
    lora_rank: int = setting(8, "The rank of the adapters.", bounds=COUNT)
    channels_last: bool = setting(False, "Keep the UNet in the memory layout channels_last.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting("no", "The precision of the computation.")
    caption_cache_mb: int = setting(1024, "Text states are kept in memory up to this size.", bounds=COUNT_OR_NONE)
    image_cache_mb: int = setting(1024, "Pictures are kept in memory up to this size.", bounds=COUNT_OR_NONE)
    dataloader_num_workers: int = setting(
        0, "Processes that load the pictures that are not kept.", "--workers", bounds=COUNT_OR_NONE
    )
    logging_steps: int = setting(20, "Steps between logs; 0 means never.", "--log-every", bounds=COUNT_OR_NONE)
    save_steps: int = setting(500, "Steps between checkpoints; 0 means never.", "--save-every", bounds=COUNT_OR_NONE)
    sample_every: int = setting(0, "Steps between sheets of samples; 0 means never.", bounds=COUNT_OR_NONE)
    sample_prompts: tuple[str, ...] = setting((), "What the sheets show. It can be repeated.")
    sample_seeds: int = setting(4, "Pictures of each prompt on a sheet.", bounds=COUNT)
    sample_steps: int = setting(25, "Inference steps of the sheets.", bounds=COUNT)
    guidance_scale: float = setting(3.0, "The guidance of the sheets.", bounds=NOT_NEGATIVE)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.max_minutes, self.min_snr_gamma = self.max_minutes or None, self.min_snr_gamma or None
        if self.sample_every and not self.sample_prompts:
            raise ValueError("sample_every needs sample_prompts: what should be drawn?")

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate after a share `progress` (0..1) of the run: linear warm-up, plateau, cosine to zero."""
        if self.warmup and progress < self.warmup:
            return self.learning_rate * (progress / self.warmup)
        if self.cooldown and progress > 1 - self.cooldown:
            share = min((progress - 1 + self.cooldown) / self.cooldown, 1.0)
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        return self.learning_rate

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the folder's parents and what the command line has besides."""
        own = {each.name: getattr(self, each.name) for each in fields(TextToImageSettings)}
        return {**own, "output": self.output.name, "sample_prompts": list(self.sample_prompts)}

    def fixed(self) -> dict[str, Any]:
        """What the trained weights depend on: a checkpoint of other values is of another run. Where the clock ends the
        run the number of steps is only a bound."""
        held = {name: value for name, value in self.to_dict().items() if name not in _FREE}
        if self.max_minutes is not None:
            del held["max_steps"]
        return held
