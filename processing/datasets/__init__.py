"""Readers: one for a user's own pairs in any common format, and the demo set."""

from .loading import load_pairs
from .pairs import PairDataset

__all__ = ["PairDataset", "load_pairs"]
