"""Who may compute now: a bounded line of waiting visitors, in which nobody waits for long without being told."""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .actions import checked_image
from .gate import uploaded_file
from .models import AppModels

WAITING, SECONDS = 20, 5


class BusyError(RuntimeError):
    """The line is full, or the turn did not come in time."""


class Turns:
    """At most `at_once` hold a turn; the others wait, first come, first served.

    Args:
        at_once: turns held at the same time.
        waiting: how many may wait.
        seconds: how long one waits.
    """

    def __init__(self, at_once: int = 1, waiting: int = WAITING, seconds: float = SECONDS):
        self.waiting, self.seconds = waiting, seconds
        self._free = at_once
        self._line: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for a turn, hold it.

        Raises:
            BusyError: so many wait already, or the turn has not come within `seconds`.
        """
        ticket = object()
        with self._changed:
            if self._free == 0 and len(self._line) >= self.waiting:
                raise BusyError
            self._line.append(ticket)
            until = time.monotonic() + self.seconds
            while self._free == 0 or self._line[0] is not ticket:
                left = until - time.monotonic()
                if left > 0:
                    self._changed.wait(left)
                else:
                    self._line.remove(ticket)
                    self._changed.notify_all()
                    raise BusyError
            self._line.popleft()
            self._free -= 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()


class Lines:
    """One visitor at a time computes with the models, and the pictures of two lie decoded in memory."""

    def __init__(self, models: AppModels) -> None:
        self.models = models
        self._computing, self._images = Turns(1), Turns(2)

    def computing(self) -> AbstractContextManager[None]:
        """A turn of the models. Decoding is not part of it: a picture that takes long holds up pictures alone."""
        return self._computing.turn()

    def with_image(self, answer: Callable[..., tuple]) -> Callable[..., tuple]:
        """`answer`, given the decoded picture in place of the upload that Gradio hands on."""

        @functools.wraps(answer)
        def with_image(upload, *values):
            file = uploaded_file(upload.get("path")) if isinstance(upload, dict) else None
            with self._images.turn():
                return answer(checked_image(self.models, file), *values)

        return with_image


__all__ = ["WAITING", "BusyError", "Lines", "Turns"]
