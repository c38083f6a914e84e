"""A node keeps its key, and nobody else can read it or sign with it."""

from __future__ import annotations

import hashlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swarmd.core.errors import ConfigError
from swarmd.swarm.identity import KEY_FILE, Identity, dht_key_file, verify


def test_an_identity_survives_a_restart(tmp_path: Path) -> None:
    first = Identity.load_or_create(tmp_path / "state")
    second = Identity.load_or_create(tmp_path / "state")
    assert first.peer_id == second.peer_id
    assert first.peer_id == hashlib.sha256(first.public_key).hexdigest()[:40]
    assert Identity.load_or_create(tmp_path / "other").peer_id != first.peer_id


def test_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        Identity.load_or_create(tmp_path)


def test_a_damaged_key_is_not_replaced_silently(tmp_path: Path) -> None:
    Identity.load_or_create(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"half a key")
    with pytest.raises(ConfigError, match="holds 10 bytes, a key has 32"):
        Identity.load_or_create(tmp_path)


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = {i.peer_id for i in pool.map(Identity.load_or_create, [tmp_path] * 32)}
    assert len(ids) == 1
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


def test_a_signature_fits_one_message_and_one_key() -> None:
    one, other = Identity.generate(), Identity.generate()
    signature = one.sign(b"message")
    assert verify(one.public_key, signature, b"message")
    assert not verify(one.public_key, signature, b"messag")
    assert not verify(other.public_key, signature, b"message")
    assert not verify(one.public_key, signature[:-1], b"message")
    assert not verify(b"", b"", b"message")
    assert not verify(b"\xff" * 32, signature, b"message")


def test_the_dht_key_is_libp2ps_form_of_an_ed25519_key(tmp_path: Path) -> None:
    content = dht_key_file(tmp_path).read_bytes()
    assert content[:4] == bytes([8, 1, 18, 64])
    assert Identity(content[4:36]).public_key == content[36:]
    assert dht_key_file(tmp_path).read_bytes() == content


def test_a_state_directory_that_cannot_be_written_is_named_with_the_way_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way")
    for make in (Identity.load_or_create, dht_key_file):
        with pytest.raises(ConfigError, match=r"cannot write .*\.key: .*--state-dir"):
            make(tmp_path / "file" / "state")
