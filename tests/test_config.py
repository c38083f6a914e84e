"""Flags win over the environment, it over the file, the file over defaults; nothing is guessed."""

from __future__ import annotations

import re
import tomllib
from dataclasses import MISSING
from pathlib import Path

import pytest

from swarmd.core import options
from swarmd.core.config import (
    KEYS,
    LEAST_LINK_MEMORY,
    NodeConfig,
    default_state_dir,
    env_name,
    load_config,
)
from swarmd.core.config import render_toml as rendered
from swarmd.core.errors import ConfigError
from swarmd.wire import limits

NODE_TOML = Path(__file__).parents[1] / "configs" / "node.toml"
ENV = {"HOME": "/home/u"}


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(text)
    return file


def test_flag_wins_over_env_over_file_over_default(tmp_path: Path) -> None:
    file = write(tmp_path, 'model = "m"\nthreads = 1\nchunk_size = 11\nlease = 10\n')
    env = ENV | {"SWARMD_THREADS": "2", "SWARMD_CHUNK_SIZE": "22"}
    config = load_config({"threads": 3, "chunk_size": None}, env, file)
    assert (config.threads, config.chunk_size, config.lease, config.gap_wait) == (3, 22, 10.0, 30.0)


def test_every_key_can_come_from_each_source(tmp_path: Path) -> None:
    samples: dict[str, object] = {
        "model": "m", "revision": "r", "blocks": "2:5", "no_rebalance": True,
        "weights_memory": "3GiB", "preemption": "aws", "listen": "127.0.0.1:1", "announce": "a:2",
        "peers": ["b:3", "c:4"], "dht_listen": "127.0.0.1:0", "device": "cuda:1",
        "dtype": "bfloat16", "threads": 3, "kv_memory": "4GiB", "replay_memory": "1MiB",
        "link_memory": "65MiB", "max_model_len": 77, "max_sessions": 5,
        "served_model_name": "n", "chunk_size": 9,
        "no_prefix_cache": True, "standby": 1, "keep_alive_limit": 0.5, "keep_memory": "2GiB",
        "gap_wait": 1.5, "orphan_grace": 2.5, "link_timeout": 3.5, "drain_timeout": 4.5,
        "lease": 5.5, "state_dir": "/s", "insecure": True, "metrics": "127.0.0.1:9",
        "log_level": "debug",
    }  # fmt: skip
    assert samples.keys() == KEYS.keys()
    lines = [
        f"{k} = {v if isinstance(v, int | float | list) else repr(v)}" for k, v in samples.items()
    ]
    text = "\n".join(lines).replace("True", "true")
    from_file = load_config({}, ENV, write(tmp_path, text))
    from_env = load_config(
        {},
        {env_name(k): ",".join(v) if isinstance(v, list) else str(v) for k, v in samples.items()},
    )
    assert from_file == from_env == load_config(samples, ENV)
    assert from_file.peers == ("b:3", "c:4")
    assert from_file.kv_memory == 4 << 30
    defaults = NodeConfig(model="other")
    assert all(getattr(from_file, k) != getattr(defaults, k) for k in KEYS)


@pytest.mark.parametrize(
    ("flags", "env", "toml", "said"),
    [
        ({"tread": 3}, {}, "", "'tread'; did you mean 'threads'?"),
        ({}, {"SWARMD_KV_MEMROY": "1"}, "", "did you mean 'SWARMD_KV_MEMORY'?"),
        ({}, {}, "kv-memory = 1", "did you mean 'kv_memory'?"),
        ({}, {}, "[node]\nmodel = 'm'", "unknown key"),
        ({}, {}, "model = ", "is not TOML"),
    ],
)
def test_unknown_keys_are_refused_with_a_hint(
    tmp_path: Path, flags: dict[str, object], env: dict[str, str], toml: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config({"model": "m"} | flags, ENV | env, write(tmp_path, toml))


def test_variables_of_kubernetes_services_are_not_mistaken_for_ours() -> None:
    env = ENV | {"SWARMD_PORT": "tcp://10.0.0.1:7420", "SWARMD_SERVICE_HOST": "10.0.0.1"}
    assert load_config({"model": "m"}, env).listen == "127.0.0.1:7420"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("blocks", "3", "auto or START:END"),
        ("blocks", "5:2", "start < end"),
        ("listen", "127.0.0.1:99999", "0 to 65535"),
        ("listen", "http://x:1", "HOST:PORT"),
        ("listen", ":7420", "HOST:PORT"),
        ("listen", "--insecure", "HOST:PORT"),
        ("listen", "a:b:c", "HOST:PORT"),
        ("announce", "a:0", "port 0"),
        ("peers", "a:1,b:x", "0 to 65535"),
        ("device", "gpu", "cpu, cuda"),
        ("dtype", "bfloat", "did you mean 'bfloat16'?"),
        ("threads", 0, "between 1 and"),
        ("threads", True, "whole number"),
        ("threads", "two", "whole number"),
        ("kv_memory", "4 apples", "such as 4GiB"),
        ("kv_memory", -1, "at least 1 byte"),
        ("gap_wait", "nan", "seconds"),
        ("gap_wait", [1], "number of seconds"),
        ("link_timeout", 0, "between 1 and 600"),
        ("lease", 121, "between 3 and 120"),
        ("insecure", "maybe", "true or false"),
        ("log_level", "loud", "not one of"),
        ("model", "  ", "expected text"),
    ],
)
def test_a_bad_value_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        load_config({"model": "m"} | {key: value}, ENV)
    assert str(caught.value).startswith("--" + key.replace("_", "-"))


def test_a_missing_model_or_file_says_where_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SWARMD_MODEL"):
        load_config({}, ENV)
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config({}, ENV, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 << 30), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("10kb", 10_000),
        ("123", 123), (123, 123), ("7 B", 7),
    ],
)  # fmt: skip
def test_sizes(text: object, count: int) -> None:
    assert options.size(text) == count


def test_the_memory_of_links_holds_a_frame() -> None:
    assert LEAST_LINK_MEMORY == limits.MAX_FRAME_BYTES
    assert load_config({"model": "m", "link_memory": "64MiB"}, ENV).link_memory == 64 << 20
    with pytest.raises(ConfigError, match=r"--link-memory: 63MiB is less .* at least 64MiB"):
        load_config({"model": "m", "link_memory": "63MiB"}, ENV)


def test_sizes_are_written_as_they_are_read() -> None:
    for count in (1, 1000, 1024, 256 << 20, 3 << 40):
        assert options.size(options.format_size(count)) == count


@pytest.mark.parametrize(
    ("text", "split"),
    [("[::1]:80", ("::1", 80)), ("::1", ("::1", 5)), ("[::1]", ("::1", 5)), ("h", ("h", 5))],
)
def test_addresses(text: str, split: tuple[str, int]) -> None:
    assert options.split_address(text, 5) == split
    assert options.split_address(options.join_address(*split)) == split


@pytest.mark.parametrize("listen", ["0.0.0.0:7420", "[::]:7420", "10.1.2.3:7420", "box.lan:7420"])
def test_listening_to_others_needs_insecure_and_warns(listen: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        load_config({"model": "m", "listen": listen}, ENV)
    flags = {"model": "m", "listen": listen, "insecure": True, "announce": "box.lan:7420"}
    assert listen in load_config(flags, ENV).warnings()[0]


@pytest.mark.parametrize("listen", ["0.0.0.0:7420", "[::]:7420"])
def test_an_address_that_nobody_can_dial_is_not_announced(listen: str) -> None:
    flags = {"model": "m", "listen": listen, "insecure": True}
    with pytest.raises(ConfigError, match="--announce"):
        load_config(flags, ENV)
    assert load_config(flags | {"announce": "box.lan:7420"}, ENV).listen == listen


def test_metrics_are_for_this_machine_unless_others_are_meant() -> None:
    assert load_config({"model": "m"}, ENV).metrics is None
    own = load_config({"model": "m", "metrics": "localhost"}, ENV)
    assert (own.metrics, own.warnings()) == ("localhost:7422", ())
    flags = {"model": "m", "metrics": "10.1.2.3:7"}
    with pytest.raises(ConfigError, match=re.escape("10.1.2.3:7 can be reached")):
        load_config(flags, ENV)
    (warning,) = load_config(flags | {"insecure": True}, ENV).warnings()
    assert warning.endswith("10.1.2.3:7 sees this node's load")


def test_an_exposed_directory_is_exposed_too() -> None:
    with pytest.raises(ConfigError, match=re.escape("0.0.0.0:7421")):
        load_config({"model": "m", "dht_listen": "0.0.0.0"}, ENV)


@pytest.mark.parametrize(
    ("listen", "directory"),
    [
        ("127.0.0.1:7420", "127.0.0.1:7421"),
        ("localhost:0", "localhost:0"),
        ("[::1]:9", "[::1]:10"),
    ],
)
def test_loopback_warns_of_nothing_and_the_directory_is_beside(listen: str, directory: str) -> None:
    config = load_config({"model": "m", "listen": listen}, ENV)
    assert config.warnings() == ()
    assert config.dht_address == directory
    given = load_config({"model": "m", "listen": listen, "dht_listen": "127.0.0.1:5"}, ENV)
    assert given.dht_address == "127.0.0.1:5"


def test_state_dir_follows_systemd_then_xdg_then_home() -> None:
    home, xdg = {"HOME": "/h"}, {"HOME": "/h", "XDG_STATE_HOME": "/x"}
    assert default_state_dir(home) == Path("/h/.local/state/swarmd")
    assert default_state_dir(xdg) == Path("/x/swarmd")
    assert default_state_dir(xdg | {"STATE_DIRECTORY": "/var/lib/a:/b"}) == Path("/var/lib/a")
    assert load_config({"model": "m"}, xdg).state_dir == Path("/x/swarmd")
    assert load_config({"model": "m", "state_dir": Path("/f")}, xdg).state_dir == Path("/f")


def test_node_toml_is_rendered_from_the_table() -> None:
    assert NODE_TOML.read_text() == rendered()


def test_node_toml_shows_every_key_with_its_default(tmp_path: Path) -> None:
    shown = re.sub(r"^#(?=[a-z_]+ = )", "", NODE_TOML.read_text(), flags=re.MULTILINE)
    assert tomllib.loads(shown).keys() == KEYS.keys()
    config = load_config({}, ENV, write(tmp_path, shown))
    for name, key in KEYS.items():
        if key.default is not MISSING and key.default is not None:
            assert getattr(config, name) == key.default


def test_node_toml_as_shipped_changes_nothing_but_the_model() -> None:
    config = load_config({}, ENV, NODE_TOML)
    assert config == load_config({"model": config.model}, ENV)
