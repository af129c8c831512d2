"""The lengths of captions that text_encoding.py encodes: a seeded draw, committed as caption_lengths.json.

    python benchmarks/caption_lengths.py

Short captions of photographs: 12 to 33 characters, median 19, a tail to the right (a gamma distribution).
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
SHORTEST, LONGEST, MEDIAN = 12, 33, 19


def draw(number: int = 512, seed: int = 0) -> list[int]:
    """`number` lengths in random order."""
    lengths = SHORTEST + np.random.default_rng(seed).gamma(shape=3.2, scale=2.7, size=number)
    return np.clip(np.floor(lengths), SHORTEST, LONGEST).astype(int).tolist()


def load() -> list[int]:
    """The committed list."""
    return json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(json.dumps(draw()) + "\n", encoding="utf-8")
