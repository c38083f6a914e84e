"""A node's identity: an Ed25519 key in its state directory, and the peer id that follows from it.

What is signed with it is `swarm.records`' business; certificates for links are the transport's.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarmd.core.errors import ConfigError

KEY_FILE = "node.key"
DHT_KEY_FILE = "dht.key"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
_PEER_ID_BYTES = 20
_LIBP2P_ED25519 = bytes([0x08, 0x01, 0x12, 0x40])
"""Head of libp2p's `PrivateKey` protobuf: type Ed25519, then 64 bytes of seed and public key."""


def peer_id_of(public_key: bytes) -> str:
    """Return the peer id of a key: the first 20 bytes of its SHA-256, as 40 hex digits."""
    return hashlib.sha256(public_key).digest()[:_PEER_ID_BYTES].hex()


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether `signature` is that key's over `message`; False for malformed input too."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """One node's key pair; the private half never leaves this object but to its file."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        """Return a new identity that is not written anywhere."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def load_or_create(cls, state_dir: Path) -> Identity:
        """Return the identity kept in `state_dir`, made at the first call.

        Raises ConfigError if the file is damaged, if others on the machine can read it, or if it
        cannot be written.
        """
        path = state_dir / KEY_FILE
        _write_new(path, os.urandom(KEY_BYTES))
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} can be read by others on this machine: chmod 600 {path}")
        seed = path.read_bytes()
        if len(seed) != KEY_BYTES:
            raise ConfigError(
                f"{path} holds {len(seed)} bytes, a key has {KEY_BYTES}: restore it from a backup, "
                "or delete it to become a new peer"
            )
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature over `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def dht_key_file(state_dir: Path) -> Path:
    """Return the file of the DHT's own libp2p key in `state_dir`, made at the first call."""
    path = state_dir / DHT_KEY_FILE
    seed = os.urandom(KEY_BYTES)
    _write_new(path, _LIBP2P_ED25519 + seed + Identity(seed).public_key)
    return path


def _write_new(path: Path, content: bytes) -> None:
    """Write a file with mode 0600 unless it is there already; a crash leaves no half a file.

    Raises ConfigError where the disk is full or the directory cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path, content)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; make room, or set --state-dir"
        ) from error


def _make(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: of two processes that start at once, the first one's key stays.
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
