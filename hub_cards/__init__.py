"""Model cards: templates, and what fills them."""

from .cards import converted_card, demo_card

__all__ = ["converted_card", "demo_card"]
