# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the hub's HTTP interface on localhost: what huggingface_hub calls to list, fetch and commit files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Files from this size on are stored by their sha256, as on the hub.
LARGE = 1000


class HubServer(ThreadingHTTPServer):
    """repositories: id -> path -> content.  cut: paths whose transfer stops half-way, once.

    damaged: paths of which other bytes are sent.  earlier: what a commit, tag or branch other than the newest holds, by
    its name; its commit is the name itself where that is one.  requests: "METHOD path range" of every one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: list[dict[str, object]] = []
        self.created: list[dict[str, object]] = []
        self.branches: list[str] = []
        self.uploaded: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.earlier: dict[str, dict[str, bytes]] = {}
        self.damaged: set[str] = set()
        self.requests: list[str] = []
        self.refuses_writes = False

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fetched(self) -> list[str]:
        """Files whose content was asked for, in order."""
        found = (re.fullmatch(r"GET /o/m/resolve/[^/]+/(\S+) .*", line) for line in self.requests)
        return [match[1] for match in found if match]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A running server."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Nothing on stderr."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"GET {path} {self.headers.get('Range', '')}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(found[1], found[2])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            files = self._at(found[1], found[2]) or {}
            self._json([_entry(name, data) for name, data in files.items()])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], with_body=True)
        else:
            self._json({"error": "not here"}, status=404)

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"HEAD {path}")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3], with_body=False)
        else:
            self._json({}, status=404)

    def do_PUT(self) -> None:
        self.server.uploaded[self.path.rpartition("/")[2]] = self._body()
        self._json({})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.server.requests.append(f"POST {path}")
        if self.server.refuses_writes:
            self._json({"error": "Invalid credentials"}, status=403)
        elif path == "/api/repos/create":
            request = json.loads(body)
            self.server.created.append(request)
            name = f"{request['organization']}/{request['name']}"
            self.server.repositories.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/branch/" in path:
            self.server.branches.append(path.rpartition("/")[2])
            self._json({})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular"} for file in files
            ]
            self._json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            href = f"{self.server.url}/upload/"
            actions = [{**item, "actions": {"upload": {"href": href + item["oid"]}}} for item in objects]
            self._json({"transfer": "basic", "objects": actions})
        elif "/commit/" in path:
            self._commit(path, body)
        else:
            self._json({"error": "not here"}, status=404)

    def _commit(self, path: str, body: bytes) -> None:
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        files = self.server.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append({"revision": path.rpartition("/")[2], **value})
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        url = f"{self.server.url}/{repository}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _at(self, repository: str, revision: str | None) -> dict[str, bytes] | None:
        """Files of a revision; None where there is none of that name."""
        if revision in (None, "main", COMMIT, *self.server.branches):
            return self.server.repositories.get(repository)
        held = {_commit_of(name): files for name, files in self.server.earlier.items()} | self.server.earlier
        return held.get(str(revision))

    def _is_there(self, repository: str, revision: str | None) -> bool:
        """Answers what is not there."""
        missing = "Repo" if repository not in self.server.repositories else "Revision"
        if missing == "Revision" and self._at(repository, revision) is not None:
            return True
        self._json({"error": f"{missing} not found"}, status=404, headers={"X-Error-Code": f"{missing}NotFound"})
        return False

    def _info(self, repository: str, revision: str | None) -> None:
        if not self._is_there(repository, revision):
            return
        files = self._at(repository, revision) or {}
        siblings = [{"rfilename": name} for name in files]
        self._json(
            {
                "id": repository,
                "sha": _commit_of(revision),
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
            }
        )

    def _file(self, repository: str, revision: str, name: str, *, with_body: bool) -> None:
        if not self._is_there(repository, revision):
            return
        data = (self._at(repository, revision) or {}).get(name)
        if data is None:
            self._json({"error": "Entry not found"}, status=404, headers={"X-Error-Code": "EntryNotFound"})
            return
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", _commit_of(revision))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not with_body:
            return
        if name in self.server.damaged:
            data = bytes(byte ^ 1 for byte in data)
        if name in self.server.cut:
            self.server.cut.discard(name)
            self.wfile.write(data[start : start + (len(data) - start) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _commit_of(revision: str | None) -> str:
    if revision in (None, "main", COMMIT):
        return COMMIT
    is_commit = re.fullmatch(r"[0-9a-f]{40}", str(revision))
    return str(revision) if is_commit else hashlib.sha1(str(revision).encode()).hexdigest()


def _etag(data: bytes) -> str:
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": _etag(data)[:40]}
    if len(data) >= LARGE:
        entry["lfs"] = {"oid": _etag(data), "size": len(data), "pointerSize": 130}
    return entry
