"""Reads one option's value from a flag, an environment variable or TOML, and says what is wrong.

Which options there are, and which source wins, is `swarmd.core.config`'s.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from swarmd.core.errors import ConfigError
from swarmd.core.span import Span

Parser = Callable[[object], object]
"""Takes text, or what TOML made of it; returns the value; raises ConfigError without the name."""

_UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("iB", 1024), ("B", 1000), ("", 1024))
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known word, or the empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def text(value: object) -> str:
    """A string that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"expected text, not {value!r}")
    return value.strip()


def choice(*words: str) -> Parser:
    """One of a few words."""

    def parse(value: object) -> str:
        word = text(value).lower()
        if word not in words:
            listed = ", ".join(words)
            raise ConfigError(f"{value!r} is not one of {listed}{did_you_mean(word, words)}")
        return word

    return parse


def flag(value: object) -> bool:
    """A TOML boolean, or true/false, yes/no, on/off, 1/0."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _TRUE + _FALSE:
        raise ConfigError(f"expected true or false, not {value!r}")
    return word in _TRUE


def whole(low: int, high: int) -> Parser:
    """A whole number from `low` to `high`, both included."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ConfigError(f"expected a whole number, not {value!r}")
        try:
            number = int(value)
        except ValueError:
            raise ConfigError(f"expected a whole number, not {value!r}") from None
        if not low <= number <= high:
            raise ConfigError(f"must be between {low} and {high}, not {number}")
        return number

    return parse


def seconds(low: float, high: float) -> Parser:
    """A number of seconds from `low` to `high`, both included."""

    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"expected a number of seconds, not {value!r}")
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"expected a number of seconds, not {value!r}") from None
        if not (math.isfinite(number) and low <= number <= high):
            raise ConfigError(f"must be between {low:g} and {high:g} seconds, not {value}")
        return number

    return parse


def size(value: object) -> int:
    """Bytes: a whole number, or `"4GiB"`, `"512MiB"`, `"1.5G"` (K, M, G, T alone are binary)."""
    if isinstance(value, int) and not isinstance(value, bool):
        number = float(value)
    else:
        match = _SIZE.fullmatch(str(value).strip())
        unit = _unit(match[2]) if match else None
        if match is None or unit is None:
            raise ConfigError(f"expected a size such as 4GiB, 512MiB or 1048576, not {value!r}")
        number = float(match[1]) * unit
    if not 1 <= number < 2**63:
        raise ConfigError(f"must be at least 1 byte and below 8 EiB, not {value}")
    return int(number)


def _unit(word: str) -> int | None:
    return next((size for name, size in _UNITS.items() if name.lower() == word.lower()), None)


def format_size(count: int) -> str:
    """Return `"256MiB"` for 268435456: the largest binary unit that divides it."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count and count % _UNITS[unit] == 0:
            return f"{count // _UNITS[unit]}{unit}"
    return str(count)


def path(value: object) -> Path:
    """A path; `~` is the home directory."""
    if isinstance(value, Path):
        return value.expanduser()
    return Path(text(value)).expanduser()


def blocks(value: object) -> str:
    """`"auto"`, or `"A:B"` of which either end may be missing."""
    word = text(value)
    if word.lower() == "auto":
        return "auto"
    start, colon, end = word.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (start, end)):
        raise ConfigError(f"expected auto or START:END such as 0:8, not {value!r}")
    if end:
        Span.parse(word)
    return word


def preemption(value: object) -> str:
    """A cloud's name, `auto`, `off`, or `file:` or `exec:` with what follows."""
    word = text(value)
    kind, colon, rest = word.partition(":")
    if colon and kind in ("file", "exec") and rest.strip():
        return word
    words = ("off", "auto", "aws", "gcp", "azure")
    if word.lower() in words:
        return word.lower()
    listed = ", ".join(words)
    hint = did_you_mean(word, words)
    raise ConfigError(f"{value!r} is not one of {listed}, file:PATH or exec:COMMAND{hint}")


def device(value: object) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    word = text(value).lower()
    if not _DEVICE.fullmatch(word):
        raise ConfigError(f"expected auto, cpu, cuda or cuda:N, not {value!r}")
    return word


def split_address(address: str, default_port: int | None = None) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT` into host (without brackets) and port.

    Raises ConfigError if the host is missing or the port is not 0 to 65535.
    """
    host, colon, port = address.strip().rpartition(":")
    if default_port is not None and (not colon or address.endswith("]") or _is_ipv6(address)):
        host, port = address.strip(), str(default_port)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (_HOST.fullmatch(host) or _is_ipv6(host)):
        raise ConfigError(f"expected HOST:PORT such as 127.0.0.1:7420, not {address!r}")
    if not (port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ConfigError(f"the port in {address!r} must be a number from 0 to 65535")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return `HOST:PORT`, with brackets around an IPv6 host."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host. A name other than localhost counts as not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_any(host: str) -> bool:
    """Whether the host stands for all of a machine: it can be listened on, but not dialled."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def address(default_port: int, any_port: bool = False) -> Parser:
    """`HOST:PORT`, or a host alone for the default port; port 0 only where any free one will do."""

    def parse(value: object) -> str:
        host, port = split_address(text(value), default_port)
        if port == 0 and not any_port:
            raise ConfigError(f"port 0 in {value!r} cannot be dialled; name the real port")
        return join_address(host, port)

    return parse


def addresses(default_port: int) -> Parser:
    """A TOML list of addresses, or addresses with commas between them."""
    one = address(default_port)

    def parse(value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"expected a list of HOST:PORT, not {value!r}")
        words = [word for item in value for word in text(item).split(",") if word.strip()]
        return tuple(dict.fromkeys(str(one(word)) for word in words))

    return parse
