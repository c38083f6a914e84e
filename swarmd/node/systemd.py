"""Notifications to systemd: READY, STATUS, WATCHDOG and STOPPING, over its datagram socket.

Does nothing when the daemon was not started by systemd (`NOTIFY_SOCKET` unset). See sd_notify(3).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Where to tell the service manager how the node is."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = env.get("NOTIFY_SOCKET", "")
        usec = env.get("WATCHDOG_USEC", "")
        own = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = int(usec) / 1e6 if usec.isdecimal() and own else 0.0
        """Seconds within which the watchdog must be fed; 0: there is none."""
        self.told = ""
        """How far loading has come, for people; empty before it begins."""

    def ready(self, status: str) -> None:
        """Say that the node serves."""
        self._send(f"READY=1\nSTATUS={status}")

    def loading(self, done: int, total: int, what: str) -> None:
        """Say how far loading has come, when there is news and somebody takes it."""
        status = f"{what}: {100 * done // max(total, 1)} %"
        if status != self.told:
            self.told = status
            self._send(f"STATUS={status}", socket.MSG_DONTWAIT)

    def stopping(self) -> None:
        """Say that the node is on its way out."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    async def keep_alive(self, is_alive: Callable[[], bool]) -> None:
        """Feed the watchdog while the loop runs and `is_alive` says yes: else systemd restarts."""
        while self.watchdog_s:
            if is_alive():
                self.alive()
            await asyncio.sleep(self.watchdog_s / 3)

    def _send(self, message: str, flags: int = 0) -> None:
        if not self._address:
            return
        # A leading @ stands for the abstract namespace.
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(message.encode(), flags, address)
        except OSError as error:
            log.debug("systemd not reached address=%s error=%s", self._address, error)
