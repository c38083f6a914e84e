"""The configuration of a node: one frozen value, read from flags, environment and a TOML file.

What a single value may look like is `swarmd.core.options`'s. `NodeConfig` is the one table from
which the flags of `swarmd serve`, the environment variables and configs/node.toml are derived.
"""

from __future__ import annotations

import os
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from swarmd.core import options
from swarmd.core.errors import ConfigError
from swarmd.core.peers import MAX_LEASE_S

GRPC_PORT = 7420
DHT_PORT = 7421
METRICS_PORT = 7422
ENV_PREFIX = "SWARMD_"
OTHER_VARIABLES = ("SWARMD_NODE", "SWARMD_CONFIG")
"""Variables that the command line reads itself."""
# Kubernetes puts these into every pod beside a service that is called "swarmd".
_FOREIGN_PREFIXES = ("SWARMD_SERVICE_", "SWARMD_PORT")
MIB = 1 << 20
_LONG = 24 * 3600.0

LEAST_LINK_MEMORY = 64 * MIB
"""The largest frame that the wire allows."""


def default_state_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return where a node keeps its state: systemd's directory, else the XDG one of the user."""
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    base = env.get("XDG_STATE_HOME") or str(
        Path(env.get("HOME", "~")).expanduser() / ".local/state"
    )
    return Path(base) / "swarmd"


def _meta(help: str, parse: options.Parser, metavar: str, example: str) -> dict[str, Any]:
    return {"help": help, "parse": parse, "metavar": metavar, "example": example}


def _key(
    default: object, help: str, parse: options.Parser, metavar: str = "", example: str = ""
) -> Any:
    """A field of NodeConfig. `example` is TOML, shown where the default cannot be written down."""
    return field(default=default, metadata=_meta(help, parse, metavar, example))


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What `swarmd serve` is told. Values are checked by `load_config`."""

    model: str = field(
        metadata=_meta(
            "Model: a local directory or a name on the hub.",
            options.text,
            "MODEL",
            '"Qwen/Qwen2.5-0.5B-Instruct"',
        )
    )
    revision: str | None = _key(
        None, "Revision on the hub: branch, tag or commit.", options.text, "REV", '"main"'
    )
    blocks: str = _key(
        "auto",
        "Blocks to serve, START:END; auto takes what is missing most and fits.",
        options.blocks,
        "A:B|auto",
    )
    no_rebalance: bool = _key(
        False,
        "Stay on the blocks chosen at the start, though others be missing; with --blocks A:B a "
        "node always stays.",
        options.flag,
    )
    weights_memory: int | None = _key(
        None,
        "Memory for weights where the node chooses its blocks itself, such as 16GiB; unset: 70 % "
        "of what is free.",
        options.size,
        "SIZE",
        '"16GiB"',
    )
    preemption: str = _key(
        "off",
        "Who tells that this machine is about to go, so that the node drains in time: aws, gcp, "
        "azure, auto (whichever answers), file:PATH, exec:COMMAND or off.",
        options.preemption,
        "SOURCE",
    )
    listen: str = _key(
        f"127.0.0.1:{GRPC_PORT}",
        "Address for gRPC, peers and clients alike; port 0 takes any free one.",
        options.address(GRPC_PORT, any_port=True),
        "HOST:PORT",
    )
    announce: str | None = _key(
        None,
        "Address at which others reach this node, if it is not the one listened on.",
        options.address(GRPC_PORT),
        "HOST:PORT",
        '"node7.example.net:7420"',
    )
    peers: tuple[str, ...] = _key(
        (),
        "gRPC addresses of nodes of the swarm, with commas between; none: be the first.",
        options.addresses(GRPC_PORT),
        "HOST:PORT,...",
    )
    dht_listen: str | None = _key(
        None,
        "Address for the directory (DHT); unset: the host of listen and the port after it; "
        "port 0 takes any free one.",
        options.address(DHT_PORT, any_port=True),
        "HOST:PORT",
        f'"127.0.0.1:{DHT_PORT}"',
    )
    device: str = _key(
        "auto", "Where to compute: auto, cpu, cuda or cuda:N.", options.device, "DEVICE"
    )
    dtype: str = _key(
        "auto",
        "Type of the weights: auto (bfloat16 where the hardware multiplies it, else float32), "
        "float32, bfloat16 or float16.",
        options.choice("auto", "float32", "bfloat16", "float16"),
        "DTYPE",
    )
    threads: int | None = _key(
        None,
        "Threads that compute; unset: one less than the cores.",
        options.whole(1, 4096),
        "N",
        "4",
    )
    kv_memory: int | None = _key(
        None,
        "Memory for KV caches, such as 4GiB; unset: half of what is free after the weights.",
        options.size,
        "SIZE",
        '"4GiB"',
    )
    replay_memory: int = _key(
        192 * MIB, "Memory for replay logs, from which a lost hop is rebuilt.", options.size, "SIZE"
    )
    link_memory: int = _key(
        512 * MIB,
        "Memory for frames of other nodes that have come in part, over all links.",
        options.size,
        "SIZE",
    )
    max_model_len: int | None = _key(
        None,
        "Longest session in tokens; unset: what the model was made for.",
        options.whole(1, 1 << 31),
        "N",
        "8192",
    )
    max_sessions: int = _key(
        256, "Sessions at the same time, more are refused.", options.whole(1, 1 << 20), "N"
    )
    served_model_name: str | None = _key(
        None,
        "Name by which clients ask for the model; unset: MODEL as given.",
        options.text,
        "NAME",
        '"my-model"',
    )
    chunk_size: int = _key(
        256, "Longest piece of a prompt that is computed at once.", options.whole(1, 8192), "N"
    )
    no_prefix_cache: bool = _key(
        False,
        "Compute every prompt anew, also where it begins as others did.",
        options.flag,
    )
    standby: int = _key(
        0,
        "Copies of each hop's KV that other nodes hold, for sessions coordinated here: 0 or 1.",
        options.whole(0, 1),
        "0|1",
    )
    keep_alive_limit: float = _key(
        600.0,
        "How long sessions are kept between turns at most, when clients ask for it; 0: not at all.",
        options.seconds(0.0, _LONG),
        "SECONDS",
    )
    keep_memory: int | None = _key(
        None,
        "Part of the memory for KV that kept sessions may take; unset: half.",
        options.size,
        "SIZE",
        '"2GiB"',
    )
    gap_wait: float = _key(
        30.0,
        "How long a running session waits for a peer with blocks that nobody holds.",
        options.seconds(0.0, _LONG),
        "SECONDS",
    )
    orphan_grace: float = _key(
        10.0,
        "How long a session is kept after its coordinator has gone.",
        options.seconds(0.0, _LONG),
        "SECONDS",
    )
    link_timeout: float = _key(
        1.5, "Silence on a link after which the peer is lost.", options.seconds(1.0, 600), "SECONDS"
    )
    drain_timeout: float = _key(
        30.0,
        "How long a draining node waits for its sessions, and for another holder of its blocks.",
        options.seconds(0.0, _LONG),
        "SECONDS",
    )
    lease: float = _key(
        30.0,
        "How long an announcement is valid; it is renewed well before.",
        options.seconds(3.0, MAX_LEASE_S),
        "SECONDS",
    )
    state_dir: Path = field(
        default_factory=default_state_dir,
        metadata=_meta(
            "Directory for identity, known peers and the directory's state; unset: "
            "$STATE_DIRECTORY (systemd), else $XDG_STATE_HOME/swarmd or ~/.local/state/swarmd.",
            options.path,
            "DIR",
            '"/var/lib/swarmd"',
        ),
    )
    insecure: bool = _key(
        False,
        "Listen on addresses that others can reach, though anybody there may then use this node.",
        options.flag,
    )
    metrics: str | None = _key(
        None,
        "Address for Prometheus, which finds the node's figures at /metrics there; unset: nobody "
        "does.",
        options.address(METRICS_PORT, any_port=True),
        "HOST:PORT",
        f'"127.0.0.1:{METRICS_PORT}"',
    )
    log_level: str = _key(
        "info",
        "debug, info, warning or error.",
        options.choice("debug", "info", "warning", "error"),
        "LEVEL",
    )

    @property
    def dht_address(self) -> str:
        """`HOST:PORT` for the directory: `dht_listen`, or its default."""
        host, port = options.split_address(self.listen)
        # The port after gRPC's, so that two nodes on one machine need only --listen.
        return self.dht_listen or options.join_address(host, port + 1 if port else 0)

    @property
    def exposed(self) -> tuple[str, ...]:
        """Addresses listened on that other machines can reach."""
        return _reachable(self.listen, self.dht_address, *filter(None, (self.metrics,)))

    def warnings(self) -> tuple[str, ...]:
        """Return what an operator should read before the node starts, one line each."""
        swarm = " and ".join(_reachable(self.listen, self.dht_address))
        lines = []
        if swarm:
            lines.append(
                f"--insecure: anybody who can reach {swarm} can use this node and read what passes "
                "through it; keep these ports inside a network that you trust"
            )
        if self.metrics is not None and _reachable(self.metrics):
            lines.append(f"--insecure: anybody who can reach {self.metrics} sees this node's load")
        return tuple(lines)


def _reachable(*addresses: str) -> tuple[str, ...]:
    """Those of the addresses that other machines can reach."""
    return tuple(a for a in addresses if not options.is_loopback(options.split_address(a)[0]))


KEYS: Mapping[str, Field[Any]] = {f.name: f for f in fields(NodeConfig)}
"""The fields by name. `metadata` holds help, parse, metavar and example (TOML)."""


def flag_name(key: str) -> str:
    """Return `--kv-memory` for kv_memory."""
    return "--" + key.replace("_", "-")


def env_name(key: str) -> str:
    """Return `SWARMD_KV_MEMORY` for kv_memory."""
    return ENV_PREFIX + key.upper()


def load_config(
    flags: Mapping[str, object], env: Mapping[str, str], file: Path | None = None
) -> NodeConfig:
    """Read the configuration: flag, else environment, else file, else default.

    `flags` are by key; None stands for a flag that was not given. An empty environment variable
    counts as not set. Raises ConfigError with the name of the key and where it was written.
    """
    values = _from_file(file) if file is not None else {}
    values |= _from_env(env)
    values |= _from_flags(flags)
    if "model" not in values:
        raise ConfigError(
            f"no model given: name one on the command line, in {env_name('model')} or as "
            "`model` in the configuration file"
        )
    config = NodeConfig(**{"state_dir": default_state_dir(env)} | values)
    if config.link_memory < LEAST_LINK_MEMORY:
        raise ConfigError(
            f"{flag_name('link_memory')}: {options.format_size(config.link_memory)} is less than "
            f"one frame may take: at least {options.format_size(LEAST_LINK_MEMORY)}"
        )
    if config.exposed and not config.insecure:
        raise ConfigError(
            f"{' and '.join(config.exposed)} can be reached from other machines, and nothing there "
            "is encrypted or authenticated; listen on 127.0.0.1, or add --insecure if the network "
            "is trusted"
        )
    if config.announce is None and options.is_any(options.split_address(config.listen)[0]):
        raise ConfigError(
            f"--listen {config.listen} means every address of this machine, and nobody can dial "
            "that: say with --announce HOST:PORT where others reach this node"
        )
    return config


def _parse(key: str, value: object, origin: str) -> Any:
    try:
        return KEYS[key].metadata["parse"](value)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def _from_flags(flags: Mapping[str, object]) -> dict[str, Any]:
    given = {key: value for key, value in flags.items() if value is not None}
    _refuse_unknown(given, [*KEYS], "flag")
    return {key: _parse(key, value, flag_name(key)) for key, value in given.items()}


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        name: value
        for name, value in env.items()
        if name.startswith(ENV_PREFIX) and not name.startswith(_FOREIGN_PREFIXES)
    }
    known = {env_name(key): key for key in KEYS}
    _refuse_unknown(ours, [*known, *OTHER_VARIABLES], "environment variable")
    return {
        known[name]: _parse(known[name], value, name)
        for name, value in ours.items()
        if name in known and value
    }


def _from_file(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {file} is not TOML: {error}") from None
    _refuse_unknown(table, [*KEYS], f"key in {file}:")
    return {key: _parse(key, value, f"{file}: {key}") for key, value in table.items()}


def _refuse_unknown(given: Mapping[str, object], known: list[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}{options.did_you_mean(name, known)}")


def render_toml() -> str:
    """Return the text of configs/node.toml: every key with its help, its default or an example."""
    return "\n".join([_TOML_HEAD, *(_toml_entry(key) for key in KEYS.values())])


_TOML_HEAD = """\
# Configuration of a node: swarmd serve --config node.toml
#
# Every key is here. A line that begins with `#` right before a key shows its default, or an
# example where the default is to leave it unset. A flag (--kv-memory) wins over the environment
# (SWARMD_KV_MEMORY), which wins over this file.
"""


def _toml_entry(key: Field[Any]) -> str:
    unset = key.default is MISSING or key.default is None
    value = key.metadata["example"] if unset else _toml_value(key)
    note = " (example)" if unset and key.name != "model" else ""
    mark = "" if key.name == "model" else "#"
    help = textwrap.fill(
        key.metadata["help"] + note, 98, initial_indent="# ", subsequent_indent="# "
    )
    return f"{help}\n{mark}{key.name} = {value}\n"


def _toml_value(key: Field[Any]) -> str:
    default: Any = key.default
    if key.metadata["parse"] is options.size:
        return f'"{options.format_size(default)}"'
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f'"{default}"'
    return "[]" if default == () else str(default)
