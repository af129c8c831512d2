"""The page as an attacker meets it: over HTTP, against the running command."""

import http.client
import io
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny_image

CHOOSE = "请先选择一张图片"


def ask(url: str, data: bytes | None = None, headers: dict | None = None, timeout: float = 60) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(address: str, name: str, data: list) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    return ask(f"{address}gradio_api/call/{name}", json.dumps({"data": data}).encode(), headers)


def call(address: str, name: str, *data) -> str:
    """What the page answers, its last event."""
    status, answer = post(address, name, list(data))
    assert status == 200, answer
    status, events = ask(f"{address}gradio_api/call/{name}/{json.loads(answer)['event_id']}")
    assert status == 200
    return events.decode()


def answer(events: str) -> str:
    """The line below the gallery or table."""
    assert events.startswith("event: complete"), events
    return json.loads(events.split("data: ", 1)[1])[-1]


def upload(address: str, data: bytes, name: str = "photo.png") -> tuple[int, bytes]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = f"{head}Content-Type: image/png\r\n\r\n".encode() + data + f"\r\n--{boundary}--\r\n".encode()
    return ask(f"{address}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def uploaded(address: str, data: bytes) -> dict:
    status, answer = upload(address, data)
    assert status == 200, answer
    return {"path": json.loads(answer)[0]}


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """A picture of the server that nobody uploaded, a pipe, and a link among the uploads."""
    folder = tmp_path_factory.mktemp("private")
    tiny_image(3).save(folder / "private.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture(scope="module")
def elsewhere():
    """A server that notes who asks it."""
    asked = []

    class Notes(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Notes)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picture.png", asked
    server.shutdown()


IMAGE_CALLS = [
    ("search_by_image", lambda image: (image, 3)),
    ("match", lambda image: (image, "马")),
    ("classify", lambda image: (image, "马", "{}", False)),
]


@pytest.mark.parametrize(("name", "arguments"), IMAGE_CALLS, ids=[name for name, _ in IMAGE_CALLS])
def test_only_uploads_are_opened(address, private, elsewhere, name, arguments):
    """Whatever else is named, there or not, the answer is the same, and at once."""
    url, asked = elsewhere
    image = uploaded(address, png(tiny_image(3)))
    assert CHOOSE not in answer(call(address, name, *arguments(image)))
    there, data = private / "private.png", "data:image/png;base64,iVBORw0KGgo="
    hostile = [there, private / "nowhere.png", private / "pipe.png", "/dev/zero", "/proc/self/environ", url, data]
    hostile += [f"{os.path.dirname(image['path'])}/../../../../../..{there}", "private.png", "a\0b", "/" + "x" * 5000]
    answers = set()
    for path in map(str, hostile):
        start = time.monotonic()
        for extra in ({}, {"meta": {"_type": "gradio.FileData"}}, {"url": url, "meta": {"_type": "gradio.FileData"}}):
            answers.add(answer(call(address, name, *arguments({"path": path, **extra}))))
        assert time.monotonic() - start < 20
    for other in ({"url": url}, {"url": url, "meta": {"_type": "gradio.FileData"}}, {"path": [str(there)]}, {}, None):
        answers.add(answer(call(address, name, *arguments(other))))
    assert len(answers) == 1
    assert CHOOSE in answers.pop()
    assert asked == []


def test_a_file_in_the_place_of_a_text_is_not_opened(address, private, elsewhere):
    url, asked = elsewhere
    for path in (url, str(private / "private.png")):
        call(address, "search", {"path": path, "meta": {"_type": "gradio.FileData"}}, 3, 0, 0)
        call(address, "search", [{"path": path, "meta": {"_type": "gradio.FileData"}}], 3, 0, 0)
    assert asked == []


def test_a_link_among_the_uploads_is_not_followed(address, private):
    image = uploaded(address, png(tiny_image(4)))["path"]
    link = f"{image}.link.png"
    os.symlink(private / "private.png", link)
    assert CHOOSE in answer(call(address, "match", {"path": link}, "马"))
    assert ask(f"{address}gradio_api/file={urllib.parse.quote(link)}")[0] == 404


def test_files_are_not_served_by_their_paths(address, private, elsewhere):
    url, asked = elsewhere
    image = uploaded(address, png(tiny_image(5)))["path"]
    assert ask(f"{address}gradio_api/file={urllib.parse.quote(image)}")[1] == png(tiny_image(5))
    folder = os.path.dirname(image)
    paths = [
        private / "private.png",
        private / "nowhere.png",
        "/etc/passwd",
        private,
        folder,
        private / "pipe.png",
        url,
    ]
    paths += [f"{folder}/../../../../../../etc/passwd", "setup.cfg", "modeling_r2d2/app/page.py"]
    answers = {ask(f"{address}gradio_api/file={urllib.parse.quote(str(path))}") for path in paths}
    assert answers == {(404, b"Not found")}
    assert asked == []


@pytest.mark.parametrize(
    "route",
    [
        "gradio_api/proxy=http://127.0.0.1:1/x",
        "gradio_api/file/etc/passwd",
        "file=/etc/passwd",
        "monitoring",
        "monitoring/summary",
        "gradio_api/deep_link?session_hash=x",
        "gradio_api/vibe-code",
        "gradio_api/runs",
        "gradio_api/custom_component/x/client/component/../../x",
        "docs",
        "gradio_api/stream/a/1/2/playlist.m3u8",
    ],
)
def test_what_the_page_does_not_need_is_not_there(address, route):
    assert ask(address + route)[0] == 404


def test_the_queue_cannot_be_passed(address):
    body = json.dumps({"data": ["马", 3, 0, 0]}).encode()
    for route in ("gradio_api/run/search", "gradio_api/api/search", "gradio_api/component_server", "login"):
        assert ask(address + route, body, {"Content-Type": "application/json"})[0] == 404
    config = json.loads(ask(f"{address}config")[1])
    queued = [each["id"] for each in config["dependencies"] if each["queue"] is not False and each["backend_fn"]]
    assert queued
    for number in queued:  # by number too, though examples that are clicked on come this way
        body = json.dumps({"data": ["马", 3, 0, 0], "fn_index": number}).encode()
        assert ask(f"{address}gradio_api/run/predict", body, {"Content-Type": "application/json"})[0] == 404


def test_bounds_of_requests(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=20)
    for route, length in (("upload", 22 << 20), ("queue/join", 2 << 20)):
        connection.request("POST", f"/gradio_api/{route}", b"", {"Content-Length": str(length)})
        assert connection.getresponse().status == 413  # before a byte of the body is sent
        connection.close()
    json_type = {"Content-Type": "application/json"}
    join = f"{address}gradio_api/queue/join"
    for broken in (b"{", b"[" * 100_000, b"\xff", b'{"data": NaN'):
        assert ask(join, broken, json_type)[0] in (400, 422)
    assert "500" in answer(call(address, "search", "猫" * 501, 3, 0, 0))
    assert call(address, "search", "猫", 10**9, 0, 0).startswith("event: error")
    image = uploaded(address, png(tiny_image(1)))
    assert "100" in answer(call(address, "match", image, "\n".join(map(str, range(101)))))
    assert call(address, "draw", "猫", 9, 10**6, 2.0, 0).startswith("event: error")


def test_bounds_of_images(address):
    """Compared before anything is decoded."""
    large = uploaded(address, png(Image.new("L", (10_000, 5_001))))
    assert re.search("10,?000 x 5,?001", answer(call(address, "match", large, "马")))
    floats = io.BytesIO()
    Image.fromarray(np.zeros((12_000, 12_000), "float32")).save(floats, "TIFF", compression="tiff_adobe_deflate")
    start = time.monotonic()
    assert "无法读取这张图片" in answer(call(address, "match", uploaded(address, floats.getvalue()), "马"))
    assert time.monotonic() - start < 5
    assert "无法读取" not in answer(call(address, "match", uploaded(address, png(tiny_image(1))), "马"))


def test_after_a_flood_the_next_visitor_is_answered(address):
    """200 posted calls: whoever comes next waits under 5 s, or is told to come back."""
    image = uploaded(address, png(Image.new("RGB", (3000, 3000))))
    lines = "\n".join(f"一只猫 {number}" for number in range(100))

    def flood(number: int) -> int:
        name, data = ("match", [image, lines]) if number % 2 else ("search", ["马", 60, 512, 0])
        return post(address, name, data)[0]

    with ThreadPoolExecutor(8) as threads:
        states = list(threads.map(flood, range(200)))
    assert set(states) <= {200, 503}
    start = time.monotonic()
    status, body = post(address, "search", ["马", 3, 0, 0])
    if status == 200:
        _, events = ask(f"{address}gradio_api/call/search/{json.loads(body)['event_id']}")
        assert any(words in answer(events.decode()) for words in ("8 张图片", "稍后再试"))
    else:
        assert status == 503
    assert time.monotonic() - start < 20  # 5 s of waiting, and its own computing on a machine that is busy
