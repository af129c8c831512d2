"""As much of the Hub's protocol as an upload and a download need, on this machine.

Repositories: create, README check, preupload (text goes into the commit, the rest as LFS), LFS batch and upload,
commit as JSON lines; and HEAD and GET of files. It checks what it is sent: tokens, sizes, digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "a" * 34
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The server; `repos`: name -> path -> content, `private`, `log`: requests, `errors`: what clients did wrong."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[dict] = []
        self.blobs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.errors: list[str] = []
        self.lfs: set[str] = set()
        hub = self

        class Handler(_Handler):
            def __init__(self, *arguments) -> None:
                self.hub = hub
                super().__init__(*arguments)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # headers and body in one packet: else each request waits for an acknowledgement
    hub: Hub

    def log_message(self, *arguments) -> None:
        pass

    def _answer(self, status: int, body=None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        self.send_response(status)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _begin(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        self.hub.log.append(f"{self.command} {path}")
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        path, body = self._begin()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(\w+)", path):
            self._preupload(found[1], json.loads(body))
        elif re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(\w+)", path):
            self._commit(found[1], body)
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        path, body = self._begin()
        oid = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != oid:
            self.hub.errors.append(f"{oid}: other content")
        self.hub.blobs[oid] = body
        self._answer(200)

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _create(self, asked: dict) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name'].rpartition('/')[2]}"
        if name in self.hub.repos:
            self._answer(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
            return
        self.hub.repos[name] = {}
        self.hub.private[name] = bool(asked.get("private") or asked.get("visibility") == "private")
        self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def _validate(self, asked: dict) -> None:
        header = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
        if header is None or not isinstance(yaml.safe_load(header[1]), dict):
            self._answer(400, {"errors": [{"message": "no metadata"}]})
            return
        self._answer(200, {"errors": [], "warnings": []})

    def _preupload(self, repo: str, asked: dict) -> None:
        if repo not in self.hub.repos:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        modes = []
        for file in asked["files"]:
            large = file["path"].endswith(".safetensors") or b"\0" in base64.b64decode(file["sample"])
            if large:
                self.hub.lfs.add(file["path"])
            mode = "lfs" if large else "regular"
            modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self._answer(200, {"files": modes})

    def _batch(self, asked: dict) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}}}
            for wanted in asked["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        summary = None
        for line in body.decode().splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header":
                summary = value["summary"]
            elif row["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                content = self.hub.blobs.get(value["oid"])
                if content is None or len(content) != value["size"]:
                    self.hub.errors.append(f"{value['path']} was not uploaded whole")
                self.hub.repos[repo][value["path"]] = content or b""
            else:
                self.hub.errors.append(f"an operation that was not expected: {row['key']}")
        pull = "create_pr" in self.query
        self.hub.commits.append({"repo": repo, "summary": summary, "pr": pull})
        answer = {"commitUrl": f"{self.hub.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        if pull:
            answer["pullRequestUrl"] = f"{self.hub.address}/{repo}/discussions/1"
        self._answer(200, answer)

    def _file(self) -> None:
        path, _ = self._begin()
        if re.fullmatch(r"/api/models/[^/]+/[^/]+/tree/main/.+", path):  # no repository here has folders of templates
            self._answer(404, {"error": path}, X_Error_Code="EntryNotFound")
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found is None or found[1] not in self.hub.repos:
            self._answer(404, {"error": path}, X_Error_Code="RepoNotFound")
            return
        content = self.hub.repos[found[1]].get(found[3])
        if content is None:
            self._answer(404, {"error": path}, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(200, content, ETag=etag, X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
