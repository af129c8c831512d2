"""What reaches the page from outside: the routes that its browser needs, bounded bodies, and files that were uploaded.

Gradio checks a file's place only where a request marks it as one, and fetches addresses that are given as paths. So
this stands before Gradio: of every request's files only uploads remain; any other place, be it there or not, reads as
none.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes of a request with JSON: a hundred texts of 500 characters, each escaped, are 300 kB.
MAX_JSON = 2**20
#: Bytes of one picture, and of a request that uploads some.
MAX_FILE = 20 * 2**20
MAX_UPLOAD = MAX_FILE + 2**20

_API = "/gradio_api"
#: What the page's browser and Gradio's Python client ask for; everything else that Gradio can do is not there.
_READ = re.compile(
    r"/|/config/?|/(?:assets|static|svelte)/.*|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(?:/\d+)?"
    rf"|{_API}/(?:info/?|openapi\.json|theme\.css|startup-events|heartbeat/[^/]*|upload_progress|queue/data"
    r"|call/(?:v2/)?[^/]*/[^/]*)"
)
#: An example that is clicked on comes by `run/predict`; Gradio refuses what has a queue there.
_POST = re.compile(rf"{_API}/(?:queue/join|call/(?:v2/)?[^/]*|run/predict|cancel|reset/?)/?")
_UPLOAD = f"{_API}/upload"
_FILE = f"{_API}/file="


def uploaded_file(path: object) -> Path | None:
    """The file, if it lies in Gradio's folder of uploads and of the page's own pictures; else None.

    A path that leads elsewhere is not looked at: not whether it exists, nor what it is. No link, pipe or device counts.
    """
    if not isinstance(path, str) or not os.path.isabs(path):
        return None
    folder = os.path.abspath(get_upload_folder())
    try:
        place = Path(os.path.abspath(path))
        if not place.is_relative_to(folder):
            return None
        if not stat.S_ISREG(place.lstat().st_mode) or not place.resolve().is_relative_to(Path(folder).resolve()):
            return None
    except (OSError, ValueError):  # a null byte, a name that is too long
        return None
    return place


class Gate:
    """ASGI middleware in front of Gradio's app."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is allowed; answer 404, 400 or 413 to the rest."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        refusal: Response | None = None
        if scope["method"] in ("GET", "HEAD"):
            allowed = _READ.fullmatch(path) or (
                path.startswith(_FILE) and uploaded_file(path.removeprefix(_FILE)) is not None
            )
            if not allowed:
                refusal = PlainTextResponse("Not found", 404)
        elif scope["method"] == "POST" and path.rstrip("/") == _UPLOAD:
            if _announced(scope) > MAX_UPLOAD:
                refusal = PlainTextResponse(f"at most {MAX_FILE >> 20} MB", 413)
            receive = _bounded(receive, MAX_UPLOAD)
        elif scope["method"] == "POST" and _POST.fullmatch(path):
            body = await _body(receive, MAX_JSON) if _announced(scope) <= MAX_JSON else None
            if body is None:
                refusal = PlainTextResponse("too long", 413)
            else:
                try:
                    body = json.dumps(_only_uploads(json.loads(body or b"{}"))).encode()
                except (ValueError, RecursionError):
                    refusal = PlainTextResponse("not JSON that is understood", 400)
                scope = {**scope, "headers": _with_length(scope["headers"], len(body))}
                receive = _replay(body, receive)
        else:
            refusal = PlainTextResponse("Not found", 404)
        await (refusal or self.app)(scope, receive, send)


def _only_uploads(value: Any) -> Any:
    """The same with every description of a file reduced to the place of an upload, or to None."""
    if isinstance(value, list):
        return [_only_uploads(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "path" in value or "url" in value or "meta" in value:
        file = uploaded_file(value.get("path"))
        if file is None:
            return None
        return {"path": str(file), "orig_name": file.name, "meta": {"_type": "gradio.FileData"}}
    return {name: _only_uploads(each) for name, each in value.items()}


def _announced(scope: Scope) -> int:
    """Bytes of the body, as the client says; 0 where it does not."""
    value = next((value for name, value in scope["headers"] if name.lower() == b"content-length"), b"")
    return int(value) if value.isdigit() else 0


def _with_length(headers: list[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    changed = (b"content-length", b"transfer-encoding", b"content-type")
    kept = [(name, value) for name, value in headers if name.lower() not in changed]
    return [*kept, (b"content-type", b"application/json"), (b"content-length", str(length).encode())]


async def _body(receive: Receive, limit: int) -> bytes | None:
    """All of it; None where it is longer than `limit`, or the client has gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _bounded(receive: Receive, limit: int) -> Receive:
    """A client that sends more than it announced, or announced nothing, is cut off."""
    left = limit

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return bounded


__all__ = ["MAX_FILE", "Gate", "uploaded_file"]
