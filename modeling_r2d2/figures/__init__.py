"""The pictures of a run: contact sheet and training curves."""

from .contact_sheet import Hit, Query, best_hits, contact_sheet
from .curves import training_curves

__all__ = ["Hit", "Query", "best_hits", "contact_sheet", "training_curves"]
