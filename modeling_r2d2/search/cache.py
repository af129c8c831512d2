"""What of a picture is kept for the ranker, in which precision.

| keep | kept for each picture | a ViT-B/16 at 224 px, float16 |
|---|---|---:|
| none | nothing: the image tower reads the candidates' files again at every search | 0 |
| states | the tower's states | 0.3 MB |
| keys_values | also the image-text encoder's first states, and all keys and values of the text-image encoder | 3.6 MB |
"""

from dataclasses import dataclass
from typing import Literal

from ..inference.packing import PRECISIONS, Precision

Keep = Literal["none", "states", "keys_values"]


@dataclass(frozen=True)
class CacheOptions:
    """What an index keeps of every picture for the ranker.

    Args:
        keep: "none": pictures are encoded again when they are candidates; "states": the image tower's states; or
            "keys_values": also the text-image encoder's keys and values, which are larger and save its projections.
        precision: float32, float16 (half the size) or int8 (a quarter, one scale a token).

    Raises:
        ValueError: another name.
    """

    keep: Keep = "none"
    precision: Precision = "float16"

    def __post_init__(self):
        if self.keep not in ("none", "states", "keys_values"):
            raise ValueError(f"keep is {self.keep!r}; use 'none', 'states' or 'keys_values'")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; use {', '.join(PRECISIONS)}")
