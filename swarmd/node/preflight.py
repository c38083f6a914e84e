"""What can be known before anything heavy is imported: free ports, a state of our own, a model.

A line at once instead of after the seconds that torch takes. Binding the ports is the business of
`swarmd.node.server` and of the directory.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swarmd.core import options
from swarmd.core.config import NodeConfig, flag_name
from swarmd.core.errors import ConfigError
from swarmd.engine.lean_import import import_lean
from swarmd.engine.look import look_for

LOCK_FILE = "lock"
DIRECTORY_GRACE_S = 3.0
"""The directory of a node that was killed holds its port a little longer than the node lived."""


@contextmanager
def cleared(config: NodeConfig) -> Iterator[None]:
    """Hold the state directory while the node runs. Raises ConfigError for what is in the way."""
    with _state_dir(config.state_dir):
        _check_free("listen", config.listen)
        _check_free("dht_listen", config.dht_address, DIRECTORY_GRACE_S)
        if config.metrics is not None:
            _check_free("metrics", config.metrics)
        yield


def check_model(config: NodeConfig) -> None:
    """Raise what opening the model would, where a look shows it. Raises as `look_for`."""
    look_for(config.model, config.revision)


def import_models() -> None:
    """Import what all models need, before the daemon imports more of it than it uses."""
    import_lean()


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for cycles of garbage, and never look among what has come again.

    A third of the imports' CPU goes there. Later a look at all of torch would hold streams up for
    0.2 s to 0.4 s, and find nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _state_dir(path: Path) -> Iterator[None]:
    """Two nodes with one identity would take each other's place: only one may use a directory."""
    hint = f"name another directory with {flag_name('state_dir')}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (path / LOCK_FILE).open("a+")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"state directory {path}: {reason}; {hint}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"state directory {path} is in use by the node with process id "
                f"{lock.read(20).strip() or 'unknown'}; {hint}"
            ) from None
        # It only helps the message above: a node whose disk is full runs all the same.
        with suppress(OSError):
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        yield


def _check_free(key: str, address: str, patience: float = 0.0) -> None:
    """Raise ConfigError if the address cannot be listened on, or is not free in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return _try(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise ConfigError(
                    f"cannot listen on {address}: {error.strerror or error}; choose another one "
                    f"with {flag_name(key)}"
                ) from None
        time.sleep(0.1)


def _try(address: str) -> None:
    found = socket.getaddrinfo(*options.split_address(address), type=socket.SOCK_STREAM)
    family, kind, _, _, where = found[0]
    with socket.socket(family, kind) as sock:
        # As the servers do: a connection that has just ended must not stand in the way.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen()
