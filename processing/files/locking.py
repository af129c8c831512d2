"""One writer at a time, and a full disk explained."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class IndexLockedError(OSError):
    """Another process is writing to this index."""


@contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Holds the index's lock, which the system releases when the process ends, however it ends.

    Raises:
        IndexLockedError: another process holds it.
        OSError: the folder cannot be written to, or the disk is full.
    """
    from filelock import FileLock, Timeout

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise IndexLockedError(
            f"another process is writing to {root}: wait for it to end (searching is possible meanwhile)"
        ) from None
    except OSError as error:
        raise OSError(error.errno, f"the index cannot be written to {root}: {error.strerror or error}") from error
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"the disk of {root} is full ({os.strerror(error.errno)}). What was there before is intact; make room and "
            "run the same command again: it goes on where this one ended",
        ) from error
    finally:
        lock.release()
