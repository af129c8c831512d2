"""The queue of the teacher's features, with the reliability of every entry."""

import torch
from torch import Tensor, nn


class FeatureQueue(nn.Module):
    """Image and text features of the last pairs, their ids and their reliability, in a ring.

    The ring has room for the batch of all workers and `size` earlier pairs. The batch is written first and then
    compared with, so that the candidates are one view and nothing is copied to put the two together. The reliability
    of a slot is 1 when written and is multiplied by the decay at every optimizer step (arXiv 2205.03860).

    Args:
        size: earlier pairs.
        batch: the most pairs that are written at once.
        width: of the features.

    Attributes:
        images: (C, D) float32, with C = size + batch slots.
        texts: (C, D) float32.
        ids: (C,) int64.
        reliability: (C,) float32.
    """

    def __init__(self, size: int, batch: int, width: int, device: torch.device | str | None = None):
        super().__init__()
        self.batch = batch
        slots = size + batch
        self.images = nn.Buffer(torch.zeros(slots, width, device=device))
        self.texts = nn.Buffer(torch.zeros(slots, width, device=device))
        self.ids = nn.Buffer(torch.full((slots,), -1, dtype=torch.int64, device=device))
        self.reliability = nn.Buffer(torch.zeros(slots, device=device))
        #: pairs written since the beginning; the next slot and the fill follow from it
        self.written = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._written = 0

    @property
    def slots(self) -> int:
        """C."""
        return len(self.ids)

    @property
    def filled(self) -> int:
        """Slots that hold a pair: the first ones."""
        return min(self._written, self.slots)

    def push(self, images: Tensor, texts: Tensor, ids: Tensor):
        """Write B pairs over the oldest ones: features (B, D) of all workers in rank order, ids (B,) int64.

        Raises:
            ValueError: more pairs than the batch that the queue was made for.
        """
        rows = len(images)
        if rows > self.batch:
            raise ValueError(f"{rows} pairs at once, but the queue was made for a batch of at most {self.batch}")
        start = self._written % self.slots
        first = min(rows, self.slots - start)
        for buffer, values in ((self.images, images), (self.texts, texts), (self.ids, ids)):
            buffer[start : start + first] = values[:first]
            buffer[: rows - first] = values[first:]
        self.reliability[start : start + first] = 1
        self.reliability[: rows - first] = 1
        self._written += rows
        self.written.fill_(self._written)

    def new_ids(self, rows: int) -> Tensor:
        """(rows,) int64 ids below 0 that no pair has had, for data without ids."""
        return -1 - self._written - torch.arange(rows, device=self.ids.device)

    def candidates(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of what is filled: images (N, D), texts (N, D), ids (N,), reliability (N,)."""
        filled = self.filled
        return self.images[:filled], self.texts[:filled], self.ids[:filled], self.reliability[:filled]

    def age(self, decay: float):
        """One optimizer step: every reliability × decay."""
        self.reliability.mul_(decay)

    def measures(self) -> dict[str, float]:
        """`queue_fill`, the share of the slots that hold a pair, and their mean `queue_reliability`."""
        filled = self.filled
        mean = float(self.reliability[:filled].mean()) if filled else 0.0
        return {"queue_fill": filled / self.slots, "queue_reliability": mean}

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._written = int(self.written)
