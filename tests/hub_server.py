"""A Hugging Face hub on loopback: real HTTP, faults on demand, and a log of every request.

It answers what a client of the hub asks for (repository info, `resolve` with its redirect to a
content network, byte ranges) with the headers and error codes of the real one. What a repository
holds is the test's business; `chat_repo` writes one.

    with HubServer() as hub:
        hub.add_repo("org/name", directory)
        hub.fail("resolve", 429, headers={"Retry-After": "2"})
        ... os.environ.update(hub.environ(home)) ...
        assert hub.ranges("model.safetensors") == [(0, 8), ...]
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CHUNK_BYTES = 64 << 10


@dataclass(frozen=True)
class Stored:
    """One file of a commit."""

    path: Path
    size: int
    sha256: str
    blob_id: str
    large: bool


@dataclass
class Request:
    """One request as it arrived, and what was answered."""

    host: str  # "hub" or "cdn"
    method: str
    path: str
    headers: dict[str, str]
    range: tuple[int, int] | None = None
    status: int = 0
    sent: int = 0  # bytes of body


@dataclass
class Fault:
    """What goes wrong with the next requests whose path contains `part`."""

    part: str
    times: int
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall: threading.Event | None = None
    """Set by the test to let the answer go on after `cut_after` bytes."""
    reached: threading.Event = field(default_factory=threading.Event)
    """Set when the fault has begun."""


class HubServer:
    """A hub and its content network, on two ports of 127.0.0.1."""

    def __init__(self) -> None:
        self.token: str | None = None
        """The token without which private repositories do not exist; None: all are public."""
        self.gated: set[str] = set()
        self.requests: list[Request] = []
        self.answer_headers: dict[str, str] = {}
        """Replace headers of `resolve` answers: a file that changed under its name."""
        self.content_headers: dict[str, str] = {}
        """Added to the answers of the content network."""
        self.padding = b""
        """Sent after the bytes that were asked for."""
        self.honours_ranges = True
        self.infos: dict[str, str] = {}
        """Bodies that replace the description of a repository."""
        self._commits: dict[str, dict[str, dict[str, Stored]]] = {}
        self._refs: dict[tuple[str, str], str] = {}
        self._faults: list[Fault] = []
        self._links = 0
        self._guard = threading.Lock()
        self._hub = _start(self, "hub")
        self._cdn = _start(self, "cdn")

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def cdn_endpoint(self) -> str:
        return f"http://127.0.0.1:{self._cdn.server_port}"

    def environ(self, home: Path) -> dict[str, str]:
        """Variables that send huggingface_hub and swarmd here, with their caches in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def stop(self) -> None:
        """Stop listening and let stalled answers go."""
        for fault in self._faults:
            if fault.stall is not None:
                fault.stall.set()
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    # What it holds

    def add_repo(
        self, name: str, directory: Path, *, revision: str = "main", large: str = r".*\.safetensors"
    ) -> str:
        """Publish the directory as a new commit of `name`; files matching `large` go to LFS."""
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        files = {path.relative_to(directory).as_posix(): _store(path, large) for path in paths}
        listing = "".join(f"{name}\0{stored.sha256}\0" for name, stored in files.items())
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self._commits.setdefault(name, {})[commit] = files
        self._refs[name, revision] = commit
        return commit

    # What goes wrong

    def fail(
        self, part: str, status: int, *, times: int = 1, headers: dict[str, str] | None = None
    ) -> Fault:
        """Answer the next requests whose path contains `part` with a status."""
        return self._add(Fault(part, times, status=status, headers=headers or {}))

    def cut(self, part: str, after: int, *, times: int = 1) -> Fault:
        """Break the connection after so many bytes of body."""
        return self._add(Fault(part, times, cut_after=after))

    def stall(self, part: str, after: int) -> Fault:
        """Fall silent after so many bytes of body until the fault's `stall` is set."""
        return self._add(Fault(part, 1, cut_after=after, stall=threading.Event()))

    def _add(self, fault: Fault) -> Fault:
        with self._guard:
            self._faults.append(fault)
        return fault

    def take_fault(self, path: str, *, has_body: bool) -> Fault | None:
        """The fault that this request is to suffer."""
        with self._guard:
            for fault in self._faults:
                suits = has_body or fault.cut_after is None
                if fault.times > 0 and fault.part in path and suits:
                    fault.times -= 1
                    return fault
        return None

    # What was asked

    def log(self, request: Request) -> None:
        """Remember a request."""
        with self._guard:
            self.requests.append(request)

    def forget_requests(self) -> None:
        """Start a new log."""
        with self._guard:
            self.requests = []

    def bodies(self, file: str) -> list[Request]:
        """Requests to which bytes of this file were sent, whatever its commit."""
        hashes = {
            stored.sha256
            for commits in self._commits.values()
            for files in commits.values()
            for name, stored in files.items()
            if name == file
        }
        return [
            request
            for request in self.requests
            if request.sent and request.method == "GET" and request.status in (200, 206)
            and (
                request.path.split("?")[0].endswith(f"/{file}")
                or any(sha in request.path for sha in hashes)
            )
        ]  # fmt: skip

    def ranges(self, file: str) -> list[tuple[int, int]]:
        """The byte ranges `[start, end)` asked for of this file, sorted."""
        return sorted(request.range for request in self.bodies(file) if request.range)

    def sent(self, file: str) -> int:
        """Bytes of this file that were sent in all."""
        return sum(request.sent for request in self.bodies(file))

    # How it answers

    def find(self, repo: str, revision: str) -> tuple[str, dict[str, Stored]] | None:
        """Commit and files of a revision."""
        commits = self._commits.get(repo, {})
        commit = self._refs.get((repo, revision), revision)
        return (commit, commits[commit]) if commit in commits else None

    def has_repo(self, repo: str) -> bool:
        """Whether anything was published under the name."""
        return repo in self._commits

    def link(self, sha256: str) -> str:
        """A fresh address of a large file on the content network."""
        with self._guard:
            self._links += 1
            return f"{self.cdn_endpoint}/lfs/{sha256}?sig={self._links}"

    def by_hash(self, sha256: str) -> Stored | None:
        """The large file with this hash."""
        everything = (f for c in self._commits.values() for f in c.values())
        return next((s for files in everything for s in files.values() if s.sha256 == sha256), None)


def _store(path: Path, large: str) -> Stored:
    content = path.read_bytes()
    blob_id = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    sha256 = hashlib.sha256(content).hexdigest()
    return Stored(path, len(content), sha256, blob_id, re.fullmatch(large, path.name) is not None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may hang up whenever it likes; anything else is a fault of this file."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _start(hub: HubServer, host: str) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "host": host})
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    host: str
    protocol_version = "HTTP/1.1"
    timeout = 60
    request_log: Request
    fault: Fault | None

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `HubServer.requests` is the log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.request_log = Request(self.host, self.command, self.path, dict(self.headers.items()))
        self.hub.log(self.request_log)
        fault = self.fault = self.hub.take_fault(self.path, has_body=self.command != "HEAD")
        if fault is not None and fault.status is not None:
            fault.reached.set()
            return self._send(fault.status, fault.headers, b"on purpose")
        path = unquote(urlsplit(self.path).path)
        if self.host == "cdn":
            return self._cdn(path)
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/tree/([^/]+)", path):
            return self._tree(match[1], match[2])
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/revision/(.+)", path):
            return self._info(match[1], match[2])
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)", path):
            return self._info(match[1], "main")
        if match := re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3])
        return self._error(404, "EntryNotFound")

    def _allowed(self, repo: str) -> bool:
        hub = self.hub
        if hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
            self._error(401, "GatedRepo" if repo in hub.gated else "RepoNotFound")
            return False
        if not hub.has_repo(repo):
            self._error(401, "RepoNotFound")
            return False
        return True

    def _info(self, repo: str, revision: str) -> None:
        # The description of a gated repository is public on the real hub as well.
        if repo not in self.hub.gated and not self._allowed(repo):
            return None
        if repo in self.hub.infos:
            return self._send(200, {}, self.hub.infos[repo].encode())
        found = self.hub.find(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound")
        commit, files = found
        blobs = parse_qs(urlsplit(self.path).query).get("blobs") == ["true"]
        siblings = [_sibling(name, stored, blobs) for name, stored in files.items()]
        body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
        return self._send(200, {"Content-Type": "application/json"}, body)

    def _tree(self, repo: str, revision: str) -> None:
        if not self._allowed(repo):
            return None
        found = self.hub.find(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound")
        entries = [_tree_entry(name, stored) for name, stored in found[1].items()]
        headers = {"Content-Type": "application/json"}
        return self._send(200, headers, json.dumps(entries).encode())

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        if not self._allowed(repo):
            return None
        found = self.hub.find(repo, revision)
        if found is None:
            return self._error(404, "RevisionNotFound")
        commit, files = found
        stored = files.get(file)
        if stored is None:
            return self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{stored.blob_id}"'}
        if not stored.large:
            return self._content(stored, headers | self.hub.answer_headers)
        headers |= {
            "X-Linked-Etag": f'"{stored.sha256}"',
            "X-Linked-Size": str(stored.size),
            "Location": self.hub.link(stored.sha256),
        }
        return self._send(302, headers | self.hub.answer_headers, b"Found. Redirecting")

    def _cdn(self, path: str) -> None:
        if self.headers.get("authorization"):
            return self._send(400, {}, b"two kinds of authorization, as S3 says")
        stored = self.hub.by_hash(path.removeprefix("/lfs/"))
        if stored is None:
            return self._send(403, {}, b"no such address")
        etag = hashlib.md5(path.encode()).hexdigest()
        return self._content(stored, {"ETag": f'"{etag}-1"'} | self.hub.content_headers)

    def _content(self, stored: Stored, headers: dict[str, str]) -> None:
        start, end, status = 0, stored.size, 200
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if match and self.hub.honours_ranges:
            start, end, status = int(match[1]), min(int(match[2]) + 1, stored.size), 206
            if start >= end:
                return self._send(416, {"Content-Range": f"bytes */{stored.size}"}, b"")
            headers.setdefault("Content-Range", f"bytes {start}-{end - 1}/{stored.size}")
            self.request_log.range = (start, end)
        with stored.path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start) + self.hub.padding
            return self._send(status, {"Accept-Ranges": "bytes"} | headers, body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code} | (headers or {}), code.encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.request_log.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body)

    def _send_body(self, body: bytes) -> None:
        fault = self.fault
        if fault is None or fault.cut_after is None:
            return self._write(body)
        self._write(body[: fault.cut_after])
        fault.reached.set()
        if fault.stall is not None:
            fault.stall.wait()
            return self._write(body[fault.cut_after :])
        self.close_connection = True
        return self.connection.shutdown(socket.SHUT_RDWR)

    def _write(self, body: bytes) -> None:
        for position in range(0, len(body), CHUNK_BYTES):
            chunk = body[position : position + CHUNK_BYTES]
            self.request_log.sent += len(chunk)  # first: who has it all may ask at once
            try:
                self.wfile.write(chunk)
            except OSError:  # the client went away, which is its right
                self.request_log.sent -= len(chunk)
                self.close_connection = True
                return


def _sibling(name: str, stored: Stored, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    entry = {"rfilename": name, "size": stored.size, "blobId": stored.blob_id}
    if stored.large:
        lfs = {"sha256": stored.sha256, "size": stored.size, "pointerSize": 134}
        return entry | {"lfs": lfs}
    return entry


def _tree_entry(name: str, stored: Stored) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": stored.size, "oid": stored.blob_id}
    if stored.large:
        return entry | {"lfs": {"oid": stored.sha256, "size": stored.size, "pointerSize": 134}}
    return entry
