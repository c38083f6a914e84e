"""A process that has imported what a daemon imports, and forks into daemons: `forked` asks it.

Its standard input is a socket of messages. A request is a module, arguments and an environment,
with two descriptors: where to print to, and where to tell the process's id and, once it has ended,
how. A child becomes what `python -m MODULE ARGS` would be: it leaves this file's loop before it
runs a line of that, so that the interpreter ends it as it ends any other. All children end with
this process, and this one when nobody can ask any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import sys
from typing import Any

NUMBER = struct.Struct("!i")
MAX_REQUEST = 1 << 20
LATER = (
    "transformers.models.llama.modeling_llama",
    "torch.fx.experimental.symbolic_shapes",
    "swarmd.engine.panels",
    "torch.utils._device",
    "typer._adapters",
    "numpy.ma",
)
"""What a daemon imports when it has read its flags, and the model in the package."""
_DIE_WITH_PARENT = 1


class Server:
    """Forks, and tells of ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._callers: dict[int, socket.socket] = {}
        """Who waits for the end of which process."""

    def serve(self) -> Any:
        """Return in a child, with the request that it is to fulfil; in this process at the end."""
        near, far = socket.socketpair()
        far.setblocking(False)
        with near, far, selectors.DefaultSelector() as events:
            signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGCHLD, lambda *_: None)
            events.register(self._control, selectors.EVENT_READ)
            events.register(near, selectors.EVENT_READ)
            while True:
                for key, _ in events.select():
                    if key.fileobj is near:
                        near.recv(4096)
                        self._reap()
                        continue
                    message, files, _, _ = socket.recv_fds(self._control, MAX_REQUEST, 2)
                    if not message:
                        return self._end()
                    output, caller = files
                    if not (pid := os.fork()):
                        self._leave(output)
                        return json.loads(message)
                    os.close(output)
                    self._callers[pid] = socket.socket(fileno=caller)
                    self._tell(self._callers[pid], pid)

    def _end(self) -> None:
        signal.set_wakeup_fd(-1)
        for pid in self._callers:
            os.kill(pid, signal.SIGKILL)

    def _leave(self, output: int) -> None:
        """Be a child: keep nothing of this process's, but what it has imported."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        with contextlib.suppress(AttributeError, OSError):  # elsewhere than on Linux
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for other in self._callers.values():
            other.detach()
        self._callers.clear()
        self._control.detach()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                with self._callers.pop(found[0]) as caller:
                    self._tell(caller, os.waitstatus_to_exitcode(found[1]))

    @staticmethod
    def _tell(caller: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):  # it does not listen any more
            caller.sendall(NUMBER.pack(number))


def preload() -> dict[str, str]:
    """Import what a daemon does, in its order; return what that has set in the environment."""
    before = dict(os.environ)
    from swarmd.cli import bench, chat, demo, drain, generate, serve, status, version  # noqa: F401

    os.environ.setdefault("GRPC_EXPERIMENTS", serve._LEAN_GRPC)
    from swarmd.node import preflight

    preflight.import_models()
    from swarmd.node import daemon  # noqa: F401

    for name in LATER:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with contextlib.suppress(ImportError):
        from numba.core.registry import cpu_target

        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


def become(request: Any, set_by_imports: dict[str, str]) -> None:
    """Run the module as the main program of this process."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # `random` sees to itself.
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(random.SystemRandom().randrange(1 << 32))
    os.environ.clear()
    os.environ.update(set_by_imports | request["env"])
    sys.argv[1:] = request["args"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    sys.path[0] = os.getcwd()  # as under `python -m`
    set_by_imports = preload()
    gc.collect()
    gc.freeze()
    if len(os.listdir("/proc/self/task")) > 1:
        sys.exit("a thread runs here: it would be missing in children")
    with socket.socket(fileno=0) as control:
        request = Server(control).serve()
    if request is not None:
        become(request, set_by_imports)


if __name__ == "__main__":
    main()
