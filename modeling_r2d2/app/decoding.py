"""Decoding strangers' pictures in processes of their own, which a bound on time and memory can end.

A decoder is native code that a picture steers: it cannot be interrupted from within, so what takes too long, needs too
much memory or crashes takes its process with it and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from ..processing.files.images import ImageReadError, open_image

#: Bytes that decoding one picture may take beyond what the process needs anyway, where the system can bound it.
_MEMORY = 3 * 2**30
_START_SECONDS = 120
_PROGRAM = "from modeling_r2d2.app.decoding import serve; serve()"


class ImageDecoder:
    """Reads pictures as `open_image` does, each in one of `processes` helper processes.

    Usable from several threads: a call waits while all helpers are at work. Helpers start when they are first needed
    (see `start`) and end with this process.

    Args:
        max_pixels: largest width x height, compared before anything is decoded.
        seconds: that a picture may take.
        processes: how many pictures are decoded at once.
    """

    def __init__(self, max_pixels: int = 50_000_000, seconds: float = 10, processes: int = 2):
        self.max_pixels = max_pixels
        self.seconds = seconds
        self._idle: list[_Helper] = []
        self._lock = threading.Lock()
        self._free = threading.Semaphore(processes)

    def start(self) -> None:
        """Have one helper ready, so that the first picture need not wait for it."""
        with self._free:
            self._give_back(self._take())

    def open(self, path: str | os.PathLike, name: str | None = None, **opening: Any) -> Image.Image:
        """The picture of a file.

        Args:
            name: what messages call it; default: the path.
            opening: further options of `open_image`.

        Raises:
            ImageReadError: as `open_image`; or it took longer than `seconds`, or more memory than is given.
        """
        with self._free:
            helper = self._take()
            request = {"path": os.path.abspath(path), "name": name, "max_pixels": self.max_pixels, **opening}
            try:
                return helper.decode(request, self.seconds)
            finally:
                self._give_back(helper)

    def close(self) -> None:
        """End the helpers that are idle."""
        with self._lock:
            helpers, self._idle = self._idle, []
        for helper in helpers:
            helper.kill()

    def _take(self) -> _Helper:
        with self._lock:
            while self._idle:
                helper = self._idle.pop()
                if helper.alive:
                    return helper
        return _Helper()

    def _give_back(self, helper: _Helper) -> None:
        if helper.alive:
            with self._lock:
                self._idle.append(helper)


class _Helper:
    """A process that runs `serve`, asked over its standard input."""

    def __init__(self) -> None:
        # The package is found there where this process found it, whatever its working folder is.
        path = os.pathsep.join(each for each in sys.path if each and Path(each).is_dir())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert self._process.stdin is not None  # pipes, as asked for
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        with suppress(_EndedError):
            if self._within(_START_SECONDS, self._read_header) == {"ready": True}:
                return
        self.kill()
        raise RuntimeError(f"the process that decodes pictures does not start: try {sys.executable} -c '{_PROGRAM}'")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._answers.close()

    def decode(self, request: dict, seconds: float) -> Image.Image:
        label = request["name"] or request["path"]
        try:
            return self._within(seconds, lambda: self._ask(request))
        except _EndedError as error:
            self.kill()
            raise ImageReadError(f"{label}: {error}") from error

    def _ask(self, request: dict) -> Image.Image:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError as error:
            raise _EndedError("the decoder crashed") from error
        header = self._read_header()
        if "error" in header:
            raise ImageReadError(header["error"])
        width, height = header["size"]
        pixels = self._answers.read(width * height * 3)
        if len(pixels) < width * height * 3:
            raise _EndedError("the decoder crashed")
        return Image.frombytes("RGB", (width, height), pixels)

    def _read_header(self) -> dict:
        line = self._answers.readline()
        if not line:
            raise _EndedError("the decoder crashed")
        return json.loads(line)

    def _within(self, seconds: float, ask: Callable):
        """What `ask` returns; after so many seconds the process is killed, which ends its reading."""
        over = threading.Event()

        def end() -> None:
            over.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            return ask()
        except _EndedError as error:
            raise _EndedError(f"decoding it takes longer than {seconds:g} s") if over.is_set() else error from None
        finally:
            timer.cancel()


class _EndedError(Exception):
    """The process has ended before it answered."""


def serve() -> None:
    """Answer requests on standard input, lines of JSON, until it is closed: the program of a helper process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    _bound_memory()
    _answer(answers, {"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        label = request["name"] or request["path"]
        try:
            image = open_image(**{"source": request.pop("path"), **request})
            _answer(answers, {"size": image.size}, image.tobytes())
        except ImageReadError as error:
            _answer(answers, {"error": str(error)})
        except MemoryError:
            _answer(answers, {"error": f"{label}: decoding it needs too much memory"})


def _answer(file: BinaryIO, header: dict, data: bytes = b"") -> None:
    file.write(json.dumps(header).encode() + b"\n" + data)
    file.flush()


def _bound_memory() -> None:
    """Where the system counts address space (Linux)."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return
    limit = pages * resource.getpagesize() + _MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard in (resource.RLIM_INFINITY, -1) or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


__all__ = ["ImageDecoder"]
