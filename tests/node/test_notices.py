"""Notices of preemption, against local servers that speak as the clouds' metadata services do."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from swarmd.core.errors import ConfigError, PeerUnreachable, ProtocolError
from swarmd.node import preemption
from swarmd.node.notices import MAX_BYTES, Aws, Azure, Command, File, Google, Notice
from swarmd.testing import FakeClock

Reply = tuple[int, str, dict[str, str]]


class Service:
    """HTTP/1.1 whose replies are looked up by path (or made); everything else is a 404."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply | Callable[[dict[str, str]], Reply]] = {}
        self.asked: list[str] = []
        self.host = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:])}
        self.asked.append(f"{method} {path}")
        reply = self.replies.get(path, (404, "", {}))
        status, body, extra = reply if isinstance(reply, tuple) else reply(headers)
        lines = "".join(f"{k}: {v}\r\n" for k, v in extra.items())
        length = len(body.encode())
        answer = f"HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{lines}"
        writer.write((answer + "\r\n" + body).encode())
        writer.close()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    one = Service()
    server = await asyncio.start_server(one.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    one.host = f"{host}:{port}"
    yield one
    server.close()


@pytest.fixture
async def env(service: Service) -> dict[str, str]:
    url = f"http://{service.host}"
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": url,
        "GCE_METADATA_HOST": service.host,
        "AZURE_METADATA_ENDPOINT": url,
    }


ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


def ec2(service: Service, path: str = "", body: str = "", lives: int = 100) -> None:
    """IMDSv2: without a token that is younger than `lives` requests the answer is 401."""
    tokens = [0, 0]

    def token(headers: dict[str, str]) -> Reply:
        assert int(headers["x-aws-ec2-metadata-token-ttl-seconds"]) <= 21600
        tokens[0], tokens[1] = tokens[0] + 1, 0
        return 200, f"token{tokens[0]}", {}

    def guarded(status: int, text: str) -> Callable[[dict[str, str]], Reply]:
        def reply(headers: dict[str, str]) -> Reply:
            tokens[1] += 1
            good = headers.get("x-aws-ec2-metadata-token") == f"token{tokens[0]}"
            return (status, text, {}) if good and tokens[1] <= lives else (401, "", {})

        return reply

    service.replies = {ACTION: guarded(404, ""), REBALANCE: guarded(404, "")}
    if path:
        service.replies[path] = guarded(200, body)
    service.replies["/latest/api/token"] = token


async def test_ec2_has_no_notice_then_tells_what_and_when(
    service: Service, env: dict[str, str]
) -> None:
    source = Aws(env)
    ec2(service)
    assert await source.look() is None
    ec2(service, ACTION, '{"action": "terminate", "time": "2026-11-28T08:22:00Z"}')
    assert await source.look() == Notice("spot terminate", 1795854120.0)


async def test_a_rebalance_recommendation_is_advice(service: Service, env: dict[str, str]) -> None:
    ec2(service, REBALANCE, '{"noticeTime": "2026-11-28T08:22:00Z"}')
    assert await Aws(env).look() == Notice("rebalance recommendation", advice=True)


async def test_an_expired_token_is_renewed(service: Service, env: dict[str, str]) -> None:
    source = Aws(env)
    ec2(service, lives=2)
    for _ in range(3):
        assert await source.look() is None
    assert service.asked.count("PUT /latest/api/token") == 3


async def test_google_tells_of_preemption_after_a_long_poll(
    service: Service, env: dict[str, str]
) -> None:
    path = "/computeMetadata/v1/instance/preempted"
    event = "/computeMetadata/v1/instance/maintenance-event"
    google = {"Metadata-Flavor": "Google", "ETag": "abc"}
    service.replies = {path: (200, "FALSE", google), event: (404, "", google)}
    source = Google(env)
    assert await source.answers()
    assert await source.look() is None
    while not source._etags.get("preempted"):
        assert await source.look() is None
    service.replies[f"{path}?wait_for_change=true&timeout_sec=20&last_etag=abc"] = (
        200, "TRUE", google,
    )  # fmt: skip
    notice = None
    while notice is None:
        notice = await source.look()
    assert notice.what == "preempted TRUE"
    assert notice.deadline is not None
    assert 20 < notice.deadline - time.time() <= 30


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        ("TERMINATE_ON_HOST_MAINTENANCE", True),
        ("MIGRATE_ON_HOST_MAINTENANCE", False),
        ("NONE", False),
    ],
)
async def test_google_maintenance_counts_if_it_ends_the_machine(
    service: Service, env: dict[str, str], event: str, counts: bool
) -> None:
    instance, google = "/computeMetadata/v1/instance", {"Metadata-Flavor": "Google"}
    service.replies = {
        f"{instance}/preempted": (200, "FALSE", google),
        f"{instance}/maintenance-event": (200, event, {**google, "ETag": "abc"}),
    }
    source, found = Google(env), None
    async with asyncio.timeout(60):
        while not source._etags.get("maintenance-event"):  # a look tells what has answered first
            found = await source.look()
    assert (found is not None) == counts
    if found is not None:
        assert found.what == f"maintenance-event {event}"
        assert found.deadline is not None
        assert 50 < found.deadline - time.time() <= 60


@pytest.mark.parametrize(
    ("kind", "names", "counts"),
    [
        ("Preempt", ["vm_7"], True),
        ("Terminate", ["other", "vm_7"], True),
        ("Reboot", ["vm_7"], True),
        ("Redeploy", ["vm_7"], True),
        ("Preempt", ["other"], False),
        ("Freeze", ["vm_7"], False),
    ],
)
async def test_azure_events_count_if_they_name_this_machine(
    service: Service, env: dict[str, str], kind: str, names: list[str], counts: bool
) -> None:
    import json

    event = {"EventType": kind, "Resources": names, "NotBefore": formatdate(1e9, usegmt=True)}
    service.replies = {
        "/metadata/instance/compute/name?api-version=2021-02-01&format=text": (200, "vm_7", {}),
        "/metadata/scheduledevents?api-version=2020-07-01": (
            200, json.dumps({"DocumentIncarnation": 1, "Events": ["odd", event]}), {},
        ),
    }  # fmt: skip
    expected = Notice(f"scheduled event {kind}", 1e9) if counts else None
    assert await Azure(env).look() == expected


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, "", PeerUnreachable),
        (200, "{not json", ProtocolError),
        (200, "[" * 60_000, ProtocolError),
        (200, "[1]", ProtocolError),
        (200, "x" * (MAX_BYTES + 1), ProtocolError),
    ],
)
async def test_odd_answers_are_errors_and_no_notice(
    service: Service, env: dict[str, str], status: int, body: str, error: type[Exception]
) -> None:
    ec2(service)
    service.replies[ACTION] = (status, body, {})
    with pytest.raises(error):
        await Aws(env).look()


async def test_a_service_that_fails_for_a_while_is_asked_again(
    service: Service, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "poll_s", 0.01)
    ec2(service, ACTION, '{"action": "stop", "time": "soon"}')
    good, failures = service.replies[ACTION], iter([(500, "", {}), (200, "{", {})])
    assert callable(good)
    service.replies[ACTION] = lambda headers: next(failures, None) or good(headers)
    followed: list[Notice] = []

    async def follow(notice: Notice) -> bool:
        followed.append(notice)
        return True

    await preemption.watch("aws", env, follow)
    assert followed == [Notice("spot stop", None)]


async def test_advice_that_cannot_be_followed_yet_is_asked_for_again(
    service: Service, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "poll_s", 0.01)
    ec2(service, REBALANCE, "{}")
    answers = iter([False, False, True])

    async def follow(notice: Notice) -> bool:
        return notice.advice and next(answers)

    await preemption.watch("aws", env, follow)
    assert next(answers, None) is None


async def test_auto_finds_the_cloud_that_answers_and_off_asks_nobody(
    service: Service, env: dict[str, str]
) -> None:

    async def follow(notice: Notice) -> bool:
        return True

    await preemption.watch("off", env, follow)
    assert not service.asked
    assert await preemption.find_source("auto", env) is None
    service.replies["/computeMetadata/v1/instance/preempted"] = (
        200, "FALSE", {"Metadata-Flavor": "Google"},
    )  # fmt: skip
    assert isinstance(await preemption.find_source("auto", env), Google)
    ec2(service)
    assert isinstance(await preemption.find_source("auto", env), Aws)


async def test_a_file_is_a_notice_and_may_hold_the_seconds_that_are_left(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    source = File(str(path))
    assert await source.look() is None
    path.write_text("")
    assert await source.look() == Notice(f"file {path}")
    path.write_text("90\n")
    os.utime(path, (1000.0, 1000.0))
    assert await source.look() == Notice(f"file {path}", 1090.0)


async def test_a_command_that_exits_with_zero_is_a_notice(tmp_path: Path) -> None:
    assert await Command("false").look() is None
    assert await Command("true").look() == Notice("command true")
    told = await Command("echo 60").look()
    assert told is not None
    assert told.deadline is not None
    # No shell, unless one is asked for.
    assert await Command(f"test -e '{tmp_path}' && false").look() is None
    assert await Command("sh -c 'test -e / && exit 0'").look() == Notice("command sh")


async def test_a_command_that_hangs_or_is_not_there_is_an_error() -> None:
    with pytest.raises(PeerUnreachable, match="not done in"):
        await Command("sleep 60", timeout=0.05).look()
    with pytest.raises(PeerUnreachable, match="No such file"):
        await Command("no-such-command-here").look()
    with pytest.raises(ConfigError, match="No closing quotation"):
        preemption.check("exec:sh -c 'x")


def test_the_drain_takes_what_the_cloud_leaves_less_a_margin() -> None:
    clock = FakeClock(1000.0)
    assert preemption.time_left(Notice("n"), 30.0, clock) == 30.0
    assert preemption.time_left(Notice("n", 1120.0), 30.0, clock) == 115.0
    assert preemption.time_left(Notice("n", 1006.0), 30.0, clock) == 4.0
    assert preemption.time_left(Notice("n", 900.0), 30.0, clock) == 0.0
