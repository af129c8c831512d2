"""Folders that 0.1 saved for sentence-transformers name this module in their `modules.json`."""

from ..integrations.sentence_transformers import R2D2Encoder, R2D2Ranker

__all__ = ["R2D2Encoder", "R2D2Ranker"]
