"""Where notices come from that a machine is about to go: metadata services, a file, a command.

Each source says once per `look` whether there is one. How often, and what follows, is
`swarmd.node.preemption`'s. What services answer is checked as a stranger's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

import httpx

from swarmd.core.errors import PeerUnreachable, ProtocolError

CALL_S = 3.0
MAX_BYTES = 64 << 10
LINK_LOCAL = "http://169.254.169.254"
GOOGLE_POLL_S = 20
AZURE_VERSION = "2020-07-01"
_AWS_TTL_S = 21600
_AZURE_LEAVING = ("Preempt", "Terminate", "Reboot", "Redeploy")


@dataclass(frozen=True, slots=True)
class Notice:
    """That the machine is about to go, or may be."""

    what: str
    deadline: float | None = None
    """Seconds since the Unix epoch; None: not known."""
    advice: bool = False
    """Only a recommendation: to be followed if nobody is the worse for it."""


class Source(Protocol):
    """One place to look."""

    poll_s: float

    async def look(self) -> Notice | None:
        """Return the notice, if there is one. Raises PeerUnreachable or ProtocolError."""
        ...


class Metadata:
    """HTTP to a metadata service: no proxies, no redirects, a deadline, and bounded answers."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)

    async def ask(
        self, path: str, headers: Mapping[str, str], method: str = "GET", timeout: float = CALL_S
    ) -> tuple[int, str, Mapping[str, str]]:
        """Return status, text and headers. Raises PeerUnreachable, or ProtocolError: too long."""
        try:
            async with (
                asyncio.timeout(timeout),
                self._client.stream(
                    method, self._base + path, headers=dict(headers), timeout=timeout
                ) as reply,
            ):
                body = b""
                async for part in reply.aiter_raw():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise ProtocolError(f"{path} answers more than {MAX_BYTES:,} bytes")
                return reply.status_code, body.decode(errors="replace").strip(), reply.headers
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise PeerUnreachable(f"{self._base}{path}: {error or 'no answer in time'}") from None

    async def close(self) -> None:
        await self._client.aclose()


class Aws:
    """EC2, by IMDSv2: spot interruption notices, and rebalance recommendations."""

    poll_s = 5.0

    def __init__(self, env: Mapping[str, str]) -> None:
        ipv6 = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() == "ipv6"
        usual = "http://[fd00:ec2::254]" if ipv6 else LINK_LOCAL
        self.service = Metadata(env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or usual)
        self._token = ""

    async def answers(self) -> bool:
        """Whether this is EC2."""
        return bool(await self._renewed())

    async def look(self) -> Notice | None:
        action = await self._get("/latest/meta-data/spot/instance-action")
        if action is not None:
            said = _table(action)
            return Notice(f"spot {said.get('action')}", _iso(said.get("time")))
        if await self._get("/latest/meta-data/events/recommendations/rebalance") is not None:
            return Notice("rebalance recommendation", advice=True)
        return None

    async def _renewed(self) -> str:
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(_AWS_TTL_S)}
        status, text, _ = await self.service.ask("/latest/api/token", ttl, "PUT")
        token = text if status == 200 and text.isascii() and text.isprintable() else ""
        self._token = token if len(token) <= 1024 else ""
        return self._token

    async def _get(self, path: str) -> str | None:
        for _ in range(2):
            if not self._token and not await self._renewed():
                raise PeerUnreachable("the metadata service gives no token")
            headers = {"X-aws-ec2-metadata-token": self._token}
            status, text, _ = await self.service.ask(path, headers)
            if status != 401:
                return _found(path, status, text)
            self._token = ""  # it has expired
        raise PeerUnreachable(f"{path}: a fresh token is refused")


class Google:
    """Compute Engine: preemption, and maintenance that ends the machine."""

    poll_s = 1.0
    """The service itself waits for a change."""
    _PATHS: Mapping[str, tuple[str, float]] = {
        "preempted": ("TRUE", 30.0),
        "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE", 60.0),
    }
    """By value that tells of it, with the seconds that are left then."""

    def __init__(self, env: Mapping[str, str]) -> None:
        host = env.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self.service = Metadata(f"http://{host}")
        self._etags: dict[str, str] = {}

    async def answers(self) -> bool:
        """Whether this is Compute Engine."""
        _, _, headers = await self.service.ask(
            "/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}
        )
        return headers.get("metadata-flavor") == "Google"

    async def look(self) -> Notice | None:
        waits = [asyncio.create_task(self._value(name)) for name in self._PATHS]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            done = [wait.result() for wait in waits if wait.done()]
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        now = datetime.now(UTC).timestamp()
        for name, value in done:
            meaning, left = self._PATHS[name]
            if value == meaning:
                return Notice(f"{name} {value}", now + left)
        return None

    async def _value(self, name: str) -> tuple[str, str | None]:
        path, etag = f"/computeMetadata/v1/instance/{name}", self._etags.get(name)
        if etag:
            path += f"?wait_for_change=true&timeout_sec={GOOGLE_POLL_S}&last_etag={etag}"
        status, text, headers = await self.service.ask(
            path, {"Metadata-Flavor": "Google"}, timeout=GOOGLE_POLL_S + CALL_S
        )
        value, fresh = _found(path, status, text), headers.get("etag", "")
        self._etags[name] = fresh if fresh.isalnum() and len(fresh) <= 128 else ""
        return name, value


class Azure:
    """Azure's scheduled events for this machine."""

    poll_s = 2.0

    def __init__(self, env: Mapping[str, str]) -> None:
        self.service = Metadata(env.get("AZURE_METADATA_ENDPOINT") or LINK_LOCAL)
        self._name = ""

    async def answers(self) -> bool:
        """Whether this is Azure."""
        path = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        status, text, _ = await self.service.ask(path, {"Metadata": "true"})
        self._name = text if status == 200 else ""
        return bool(self._name)

    async def look(self) -> Notice | None:
        if not self._name and not await self.answers():
            raise PeerUnreachable("the metadata service does not say how this machine is called")
        path = f"/metadata/scheduledevents?api-version={AZURE_VERSION}"
        text = _found(path, *(await self.service.ask(path, {"Metadata": "true"}))[:2])
        events = _table(text).get("Events") if text else None
        for event in events if isinstance(events, list) else ():
            kind = event.get("EventType") if isinstance(event, dict) else None
            named = event.get("Resources") if kind in _AZURE_LEAVING else None
            if isinstance(named, list) and self._name in named:
                return Notice(f"scheduled event {kind}", _http_date(event.get("NotBefore")))
        return None


class File:
    """A file that somebody makes; it may hold the seconds that are left from then on."""

    poll_s = 1.0

    def __init__(self, path: str) -> None:
        self._path = Path(path).expanduser()

    async def look(self) -> Notice | None:
        try:
            made_at = self._path.stat().st_mtime
            with self._path.open(encoding="utf-8", errors="replace") as file:
                return Notice(f"file {self._path}", _told(file.read(256), made_at))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PeerUnreachable(f"{self._path}: {error.strerror}") from None


class Command:
    """A command that exits with 0 if there is a notice; it may print the seconds that are left."""

    poll_s = 5.0

    def __init__(self, line: str, timeout: float = 10.0) -> None:
        self._argv = shlex.split(line)
        self._timeout = timeout

    async def look(self) -> Notice | None:
        pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=null, stdout=pipe, stderr=null, limit=MAX_BYTES
            )
        except OSError as error:
            raise PeerUnreachable(f"{self._argv[0]}: {error.strerror}") from None
        try:
            assert process.stdout is not None
            async with asyncio.timeout(self._timeout):
                said = await process.stdout.read(256)
                code = await process.wait()
        except TimeoutError:
            raise PeerUnreachable(f"{self._argv[0]}: not done in {self._timeout:g} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        now = datetime.now(UTC).timestamp()
        told = _told(said.decode(errors="replace"), now)
        return Notice(f"command {self._argv[0]}", told) if code == 0 else None


def _found(path: str, status: int, text: str) -> str | None:
    """The text of a 200, None for a 404. Raises PeerUnreachable for anything else."""
    if status not in (200, 404):
        raise PeerUnreachable(f"{path} answers with {status}")
    return text if status == 200 else None


def _table(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"expected a JSON object, not {text[:80]!r}")
    return value


def _iso(text: object) -> float | None:
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC).timestamp()


def _http_date(text: object) -> float | None:
    try:
        return parsedate_to_datetime(str(text)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _told(text: str, since: float) -> float | None:
    """A deadline as somebody wrote it down: seconds, or a time as of ISO 8601."""
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return since + seconds if 0 <= seconds < 1e6 else None
    return _iso(text.strip())
