"""What the directory process knows of everybody's announcements.

All around are asked now and then, one holder of the records often: they are stored with all of
their holders, and looking at one costs little.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Protocol

from swarmd.swarm.records import MODELS_KEY, SHARDS, model_key
from swarmd.v1 import directory_pb2 as pb

log = logging.getLogger(__name__)

GLANCE_S = 0.35
"""How often a survey that waits looks at one holder of the records, and so sees what changes."""
LOOKUP_S = 2.0
"""How often all around are asked, as one holder may lack something."""
LEAST_S = 0.5
"""Between two of these, if a glance shows that one is needed."""
ROUNDS = 3
"""Lookups in a row at most, while each of them shows another model."""
MAX_WAIT_S = 60.0
MAX_PLACES = 1024
"""Records under one key; each is a kilobyte at most."""
MAX_MODELS = 64
"""Whose nodes are looked for."""
MAX_RECORDS = 6000
"""In one answer: a message to the node holds 8 MiB."""

Place = tuple[bytes, bytes]


class Source(Protocol):
    """A peer of the DHT, to ask for records."""

    @property
    def refused(self) -> int: ...

    async def lookup(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        """Return the latest records under the keys, of all who may have some."""
        ...

    async def glance(self, keys: Sequence[bytes]) -> Iterable[pb.DirectoryRecord]:
        """Return the records that one holder of each key has: this process, where it is one."""
        ...


class Picture:
    """The latest record of each node that is known. One that is there stays until it expires."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._records: dict[Place, pb.DirectoryRecord] = {}
        self._keys: frozenset[bytes] = frozenset()
        """Those of the models that there are."""
        self._own: frozenset[bytes] = frozenset()
        self._has_looked = False
        self._glance_at = 0.0
        self._wanted = asyncio.Event()

    def serves(self, keys: Iterable[bytes]) -> None:
        """Note under which keys this node itself is: of too many models, its own ones count."""
        self._own = frozenset(keys) - {MODELS_KEY}

    def look_again(self) -> None:
        """Have all around asked soon."""
        self._wanted.set()

    async def keep_looking(self) -> None:
        """Ask all around again and again; never ends."""
        while True:
            self._wanted.clear()
            try:
                await self._look_up()
            except Exception as error:  # whoever waits goes on with what is known
                log.debug("lookup failed error=%s", error)
            await asyncio.sleep(LEAST_S)
            try:
                async with asyncio.timeout((LOOKUP_S - LEAST_S) * random.uniform(0.8, 1.2)):
                    await self._wanted.wait()
            except TimeoutError:
                pass

    async def survey(self, order: pb.DirectorySurvey) -> pb.DirectoryFound:
        """Look at the announcements until they differ from what is known, or time is up.

        Who does not wait is told what all around say now. Waiting here, not in the node, leaves the
        node's event loop alone while nothing changes. Raises TimeoutError.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(order.wait_s, MAX_WAIT_S)
        if not order.wait_s or not self._has_looked:
            await self._look_up()
        while True:
            found = self._found(order.known)
            if found.version != order.known or loop.time() >= end:
                return found
            # Also after a change that was just told: then many of them are told at once.
            now, pause = loop.time(), GLANCE_S * random.uniform(0.8, 1.2)
            self._glance_at = max(now, self._glance_at + pause)
            await asyncio.sleep(self._glance_at - now)
            await self._glance()

    def _found(self, known: bytes) -> pb.DirectoryFound:
        """Return what is there and not expired, without its records if the version is known."""
        now = time.time()
        self._records = {p: r for p, r in self._records.items() if r.expires_at > now}
        places = [place for place in self._records if place[0] in self._keys]
        places.sort(key=lambda place: (self._own_first(place[0]), place[1]))
        records = [self._records[place] for place in islice(places, MAX_RECORDS)]
        version, refused = _version(records), self._source.refused
        news = records if version != known else []
        return pb.DirectoryFound(records=news, version=version, refused=refused)

    async def _glance(self) -> None:
        try:
            seen = list(await self._source.glance([MODELS_KEY, *self._keys]))
        except (TimeoutError, LookupError):
            self._wanted.set()
            return
        self._take(seen)
        has_models = any(record.key == MODELS_KEY for record in seen)
        if self._models() != self._keys or (self._keys and not has_models):
            self._wanted.set()  # a model has come, or this holder is none any more

    async def _look_up(self) -> None:
        """Ask all around: once where no model has come, as then the keys are known."""
        keys = self._keys
        for _ in range(ROUNDS):
            self._take(await self._source.lookup([MODELS_KEY, *keys]))
            if (models := self._models()) <= keys:
                break
            keys = models
        self._keys = models
        self._has_looked = True

    def _take(self, records: Iterable[pb.DirectoryRecord]) -> None:
        """Keep of each node what is latest."""
        now, number = time.time(), Counter(key for key, _ in self._records)
        for record in records:
            place = record.key, record.subkey
            held = self._records.get(place)
            if record.expires_at <= now or (held and held.expires_at >= record.expires_at):
                continue
            if held is None:
                if number[record.key] >= MAX_PLACES:
                    continue
                number[record.key] += 1
            self._records[place] = record

    def _models(self) -> frozenset[bytes]:
        """Return the keys under which the nodes of the models are that have any."""
        digests = [subkey.hex() for key, subkey in self._records if key == MODELS_KEY]
        keys = [model_key(digest, shard) for digest in digests for shard in range(SHARDS)]
        return frozenset(sorted(keys, key=self._own_first)[:MAX_MODELS])

    def _own_first(self, key: bytes) -> tuple[bool, bytes]:
        return key not in self._own, key


def _version(records: Iterable[pb.DirectoryRecord]) -> bytes:
    digest = hashlib.sha256()
    for record in records:
        for part in (record.key, record.subkey, record.value):
            digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
