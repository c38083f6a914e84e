"""HTTP to a Hugging Face hub: its description of a repository, and byte ranges of its files.

What is asked for, and where it is kept, is `hub`'s business.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit

import httpx

from swarmd import __version__
from swarmd.core.errors import HubError, HubRefused
from swarmd.engine.hub_settings import HubSettings
from swarmd.engine.retry import (
    DEFAULT_RETRY,
    HubUnreachable,
    NoConnection,
    RetryPolicy,
    TransientError,
    retry_after,
)

MAX_REDIRECTS = 5
MAX_INFO_BYTES = 64 << 20
TIMEOUT = httpx.Timeout(30.0, connect=10.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of one commit, as the hub describes it."""

    name: str
    size: int
    sha256: str | None
    """For files in large-file storage, where it is also their etag."""


class HubClient:
    """Requests about one repository. Safe to use from several threads."""

    def __init__(
        self,
        repo: str,
        settings: HubSettings,
        retry: RetryPolicy = DEFAULT_RETRY,
        sleep: Callable[[float], object] | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> None:
        """`sleep` replaces every wait before a retry, `timeout` the usual one of a request."""
        self.repo = repo
        self.settings = settings
        self._sleep = sleep
        self._retry = retry
        self._content_etags: dict[str, str] = {}
        self._http = httpx.Client(
            timeout=timeout or TIMEOUT,
            headers={"user-agent": f"swarmd/{__version__}", "accept-encoding": "identity"},
        )
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._guard = threading.Lock()
        weakref.finalize(self, self._http.close)

    def hang_up(self) -> None:
        """End every connection, also while another thread waits for what comes on it.

        That thread gets a TransientError; requests that begin later connect anew.
        """
        with self._guard:
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                # Past what ssl adds, which is not made for two threads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def repo_info(self, revision: str) -> dict[str, Any]:
        """The hub's description of the repository at a revision, with sizes and hashes of files.

        Errors: HubError; HubUnreachable if it might work later.
        """
        path = f"/api/models/{self.repo}/revision/{quote(revision, safe='')}?blobs=true"
        failures = 0
        while True:
            try:
                return self._get_json(path, f"revision {revision!r}")
            except TransientError as error:
                failures += 1
                self.pause(failures, error, time.sleep)

    def pause(self, failures: int, error: TransientError, sleep: Callable[[float], object]) -> None:
        """Wait until the next try, after so many in vain. Errors: HubUnreachable: give up."""
        delay = self._retry.delay(failures, error.retry_after_s, random.random())
        if delay is None:
            kind = NoConnection if isinstance(error.error, NoConnection) else HubUnreachable
            raise kind(str(error.error)) from error
        (sleep if self._sleep is None else self._sleep)(delay)

    @contextmanager
    def open_range(
        self, file: RemoteFile, commit: str, start: int, end: int
    ) -> Iterator[Iterator[bytes]]:
        """Chunks of bytes `[start, end)` of the file: perhaps fewer, never more.

        Errors: TransientError, while the chunks are read as well; HubError, also if the hub's file
        is not the one described by `file`.
        """
        url = f"{self.settings.endpoint}/{self.repo}/resolve/{commit}/{quote(file.name)}"
        with _transport_errors(self.settings.endpoint):
            response = self._follow(
                url,
                {"range": f"bytes={start}-{end - 1}"},
                lambda answer: self._check_identity(answer, file, commit),
            )
            try:
                self._check_range(response, file, start, end)
                yield _bounded(response, file.name, end - start)
            finally:
                response.close()

    def _get_json(self, path: str, what: str) -> dict[str, Any]:
        url = self.settings.endpoint + path
        with _transport_errors(self.settings.endpoint):
            response = self._follow(url, {}, lambda answer: None)
            try:
                self._raise_for_status(response, what)
                body = b"".join(_bounded(response, "repository info", MAX_INFO_BYTES))
            finally:
                response.close()
        try:
            info = json.loads(body)
        except (ValueError, RecursionError):
            info = None
        if not isinstance(info, dict):
            raise HubError(f"{url} did not answer with a JSON object: is HF_ENDPOINT a hub?")
        return info

    def _follow(
        self, url: str, headers: Mapping[str, str], check: Callable[[httpx.Response], None]
    ) -> httpx.Response:
        """GET through redirects, with a check of each answer. The caller closes the last one."""
        for _ in range(MAX_REDIRECTS):
            response = self._send(url, headers)
            try:
                if response.status_code < 400:
                    check(response)
                if not response.has_redirect_location:
                    return response
                url = _redirected(url, response.headers["location"])
            except BaseException:
                response.close()
                raise
            response.close()
        raise HubError(f"{self.repo}: more than {MAX_REDIRECTS} redirects, the last to {url}")

    def _send(self, url: str, headers: Mapping[str, str]) -> httpx.Response:
        """GET; the token goes to the hub itself only, never to where it redirects."""
        sent = dict(headers)
        if self.settings.token and self._is_hub(url):
            sent["authorization"] = f"Bearer {self.settings.token}"
        watch = {"trace": self._note_socket}
        request = self._http.build_request("GET", url, headers=sent, extensions=watch)
        return self._http.send(request, stream=True)

    def _note_socket(self, event: str, info: Mapping[str, Any]) -> None:
        """Hear what httpcore does (https://www.encode.io/httpcore/extensions/#trace).

        A new connection is a stream that knows its socket; one under TLS has another.
        """
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            sock = info["return_value"].get_extra_info("socket")
            if sock is not None:  # TLS inside the TLS of a proxy has none of its own
                with self._guard:
                    self._sockets.add(sock)

    def _is_hub(self, url: str) -> bool:
        return _origin(url) == _origin(self.settings.endpoint)

    def _check_identity(self, response: httpx.Response, file: RemoteFile, commit: str) -> None:
        """Notice a file that is not the one that the commit listed, before any byte of it counts.

        The hub names the file's hash (X-Linked-Etag, or ETag where it sends the bytes itself). A
        content network's ETag is its own: it must only stay the same at one address.
        """
        headers, url = response.headers, str(response.request.url)
        at = headers.get("x-repo-commit", commit)
        if at != commit:
            raise HubError(f"{self.repo}: asked for commit {commit}, the hub answers for {at}")
        etag, expected = headers.get("x-linked-etag"), file.sha256
        if etag is None and not response.has_redirect_location:
            etag = headers.get("etag")
            if etag is not None and not self._is_hub(url):
                expected = self._content_etags.setdefault(url.split("?")[0], _bare(etag))
        if etag is not None and _bare(etag) != expected:
            raise HubError(
                f"{self.repo}: {file.name} changed on the hub while it was read: "
                f"its etag is {_bare(etag)}, expected {expected}; start again"
            )

    def _check_range(
        self, response: httpx.Response, file: RemoteFile, start: int, end: int
    ) -> None:
        self._raise_for_status(response, file.name)
        wanted = f"bytes {start}-{end - 1}/{file.size}"
        whole = start == 0 and end == file.size
        encoding = response.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise HubError(f"{_host(response)} sends {file.name} encoded as {encoding}: refused")
        if response.status_code == 200 and whole:
            return
        got = response.headers.get("content-range", "no Content-Range")
        if response.status_code != 206 or got != wanted:
            raise HubError(
                f"{self.repo}: {file.name}: asked {_host(response)} for {wanted!r}, it answered "
                f"{response.status_code} with {got!r}: the hub must support HTTP ranges"
            )

    def _raise_for_status(self, response: httpx.Response, what: str) -> None:
        status = response.status_code
        if status < 400:
            return
        error = explain(self.repo, self.settings, status, response.headers, what)
        from_hub = self._is_hub(str(response.request.url))
        # A content network refuses an address that has expired; the hub gives out a new one.
        expired = status == 403 and not from_hub
        if status in (408, 425, 429) or status >= 500 or expired:
            raise TransientError(error, retry_after(response.headers, time.time()))
        # Whether there is such a model, only the hub can say.
        raise error if from_hub else HubError(str(error))


def explain(
    repo: str, settings: HubSettings, status: int, headers: Mapping[str, str], what: str
) -> HubError:
    """The error for an HTTP status: what was asked, what it means, what to do next.

    HubRefused if the same question will get the same answer.
    """
    endpoint = settings.endpoint
    code = headers.get("x-error-code", "")
    token = f"set HF_TOKEN to a token that may read it ({endpoint}/settings/tokens)"
    if settings.token:
        token = "check that the token in HF_TOKEN is valid and may read it"
    if code == "GatedRepo":
        return HubRefused(f"{repo} is gated: accept its terms at {endpoint}/{repo}, then {token}")
    if status in (401, 403):
        return HubRefused(
            f"{endpoint} refuses access to {repo} ({status}): there is no such model, or it is "
            f"private; check the name, and {token}"
        )
    if code == "RevisionNotFound":
        return HubRefused(f"{repo} on {endpoint} has no {what}: check --revision")
    if status == 404:
        return HubRefused(f"{repo} ({what}) was not found on {endpoint} (404): check the name")
    if status == 429:
        wait = retry_after(headers, time.time())
        when = "later" if wait is None else f"in {wait:.0f} s"
        return HubError(
            f"{endpoint} limits the rate of requests (429): try again {when}, or {token}"
        )
    return HubError(f"{endpoint} answered {status} for {repo} ({what}): try again later")


@contextmanager
def _transport_errors(endpoint: str) -> Iterator[None]:
    """Turn the HTTP library's exceptions into ours, at this border and nowhere else."""
    try:
        yield
    except httpx.TransportError as error:
        kind = NoConnection if isinstance(error, httpx.ConnectError) else HubUnreachable
        reason = str(error) or type(error).__name__
        raise TransientError(
            kind(f"cannot reach {endpoint}: {reason}; check the name, the network and HF_ENDPOINT")
        ) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise HubError(f"{endpoint}: {error}") from error


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    try:
        old, new = _origin(url)[0], _origin(target)[0]
    except ValueError as error:
        raise HubError(f"{url} redirects to {location!r}: {error}") from error
    if new not in ("http", "https") or (old == "https" and new == "http"):
        raise HubError(f"{url} redirects from {old} to {new}: refused")
    return target


def _bounded(response: httpx.Response, what: str, most: int) -> Iterator[bytes]:
    received = 0
    for chunk in response.iter_raw():
        received += len(chunk)
        if received > most:
            raise HubError(f"{_host(response)} sends more than {most} bytes of {what}")
        yield chunk


def _host(response: httpx.Response) -> str:
    return response.request.url.netloc.decode()


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port. Errors: ValueError for a malformed one."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
