"""Readers: one for a user's own pairs in any common format, and the demo set."""

from .pairs import PairDataset, load_pairs

__all__ = ["PairDataset", "load_pairs"]
