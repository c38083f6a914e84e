"""Peers that a node has known, kept on disk: a swarm whose bootstraps are gone still has a door.

Dialling them is the node's and the directory's business; an address here is a hint.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from swarmd.core.errors import ConfigError

PEERS_FILE = "peers.json"
MAX_REMEMBERED = 64
MAX_FILE_BYTES = 1 << 20
MAX_ADDRESS_CHARS = 512

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RememberedPeers:
    """When each address was last seen alive (wall time, seconds), the latest first."""

    grpc: Mapping[str, float] = field(default_factory=dict)
    """gRPC `HOST:PORT`."""
    directory: Mapping[str, float] = field(default_factory=dict)
    """libp2p multiaddresses."""

    def seen(
        self, now: float, grpc: Iterable[str] = (), directory: Iterable[str] = ()
    ) -> RememberedPeers:
        """Return this with the addresses seen now; beyond `MAX_REMEMBERED` the oldest go."""
        return RememberedPeers(
            _newest({**self.grpc, **dict.fromkeys(grpc, now)}),
            _newest({**self.directory, **dict.fromkeys(directory, now)}),
        )

    @classmethod
    def load(cls, state_dir: Path) -> RememberedPeers:
        """Return what `state_dir` remembers; nothing, with a warning, if the file is damaged."""
        path = state_dir / PEERS_FILE
        try:
            with path.open("rb") as file:
                content = json.loads(file.read(MAX_FILE_BYTES))
            return cls(_newest(_addresses(content["grpc"])), _newest(_addresses(content["dht"])))
        except FileNotFoundError:
            return cls()
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            log.warning(
                "remembered peers are unreadable and ignored: path=%s error=%s", path, error
            )
            return cls()

    def save(self, state_dir: Path) -> None:
        """Replace the file in one step; raises ConfigError if the directory cannot be written."""
        content = json.dumps({"grpc": dict(self.grpc), "dht": dict(self.directory)}, indent=1)
        try:
            _replace(state_dir / PEERS_FILE, content)
        except OSError as error:
            raise ConfigError(
                f"cannot write {state_dir / PEERS_FILE}: {error.strerror}; set --state-dir"
            ) from error


def _newest(seen: Mapping[str, float]) -> dict[str, float]:
    ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    return dict(ranked[:MAX_REMEMBERED])


def _addresses(content: object) -> dict[str, float]:
    if not isinstance(content, dict):
        raise TypeError("expected an object of addresses")
    return {
        address: float(when)
        for address, when in content.items()
        if 0 < len(address) <= MAX_ADDRESS_CHARS
        and address.isprintable()
        and isinstance(when, (int, float))
        and math.isfinite(when)
    }


def _replace(path: Path, content: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
