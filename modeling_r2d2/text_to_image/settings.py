"""What a text-to-image training run does."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..model.ranges_r2d2 import COUNT, COUNT_OR_NONE, NOT_NEGATIVE, POSITIVE, SEED, SHARE, require_numbers

#: What may change between a run and its continuation.
_FREE = {
    *("output", "resume", "overwrite", "workers", "caption_cache_mb", "image_cache_mb", "log_every", "save_every"),
    *("keep", "sample_every", "sample_prompts", "sample_seeds", "sample_steps", "guidance_scale"),
}


@dataclass
class TextToImageSettings:
    """Settings of `train_text_to_image`; the command line has the same names.

    Args:
        output: folder of checkpoints, sheets and the finished pipeline.
        steps, batch_size (per process), gradient_accumulation: length and size of the run.
        max_minutes: stop training after so long, the learning rate following the clock where it is ahead of the
            steps; such a run depends on the machine's speed and cannot be repeated bit for bit. None: no limit.
        learning_rate, warmup, cooldown (shares of the run; linear up, cosine down), weight_decay, max_grad_norm.
        resolution: side of the training pictures in pixels, cropped to the centre square.
        flip: probability of mirroring a picture.
        caption_dropout: share of captions replaced by the empty text, which guidance needs.
        min_snr_gamma: of the loss weights (arXiv 2303.09556); None: every timestep weighs the same.
        ema_decay: of the average of the weights that is sampled from and saved.
        train: of the UNet "all", its "cross_attention" and text projection, or "lora" adapters of its attention.
        text_encoder: "frozen", "lora" or "all". lora_rank: of either's adapters.
        channels_last: memory layout of the UNet. mixed_precision: "no", "bf16" or "fp16".
        caption_cache_mb, picture_cache_mb: keep text states and pictures in memory up to this size.
        workers: data loader processes for pictures that are not kept.
        log_every, save_every, sample_every: in steps; 0: never. keep: newest checkpoints to keep.
        sample_prompts, sample_seeds, sample_steps, guidance_scale: of the sheets drawn while training.
        resume: go on from the newest checkpoint in `output`. overwrite: replace what is there.

    Raises:
        ValueError: a value out of its range.
    """

    output: Path
    steps: int = 1000
    max_minutes: float | None = None
    batch_size: int = 64
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.02
    cooldown: float = 0.3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    resolution: int = 32
    flip: float = 0.0
    caption_dropout: float = 0.1
    min_snr_gamma: float | None = 5.0
    ema_decay: float = 0.999
    train: Literal["all", "cross_attention", "lora"] = "all"
    text_encoder: Literal["frozen", "lora", "all"] = "frozen"
    lora_rank: int = 8
    channels_last: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    caption_cache_mb: int = 1024
    image_cache_mb: int = 1024
    workers: int = 0
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    keep: int = 2
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ()
    sample_seeds: int = 4
    sample_steps: int = 25
    guidance_scale: float = 3.0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        self.output = Path(self.output)
        counts = ("steps", "batch_size", "gradient_accumulation", "resolution", "lora_rank", "keep", "sample_seeds")
        sizes = ("caption_cache_mb", "image_cache_mb", "workers", "log_every", "save_every", "sample_every")
        for names, bounds in (
            ((*counts, "sample_steps"), COUNT),
            (sizes, COUNT_OR_NONE),
            (("warmup", "cooldown", "flip", "caption_dropout", "ema_decay"), SHARE),
            (("max_minutes", "learning_rate", "min_snr_gamma"), POSITIVE),
            (("weight_decay", "max_grad_norm", "guidance_scale"), NOT_NEGATIVE),
            (("seed",), SEED),
        ):
            require_numbers(self, dict.fromkeys(names, bounds))
        for name, choices in (
            ("train", ("all", "cross_attention", "lora")),
            ("text_encoder", ("frozen", "lora", "all")),
            ("mixed_precision", ("no", "bf16", "fp16")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(choices)}")
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
        """Plain values for JSON, without the folder's parents."""
        return {**asdict(self), "output": self.output.name, "sample_prompts": list(self.sample_prompts)}

    def fixed(self) -> dict[str, Any]:
        """What the trained weights depend on: a checkpoint of other values is of another run. Where the clock ends the
        run the number of steps is only a bound."""
        held = {name: value for name, value in self.to_dict().items() if name not in _FREE}
        if self.max_minutes is not None:
            del held["steps"]
        return held
