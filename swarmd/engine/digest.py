"""One name for a model's weights, the same on every node whatever part of them it holds.

Where the files lie and how they got there is `checkpoint` and `hub`'s business.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarmd.engine.disk import write_atomically
from swarmd.engine.progress import Progress

log = logging.getLogger(__name__)

# Rewritten by every `save_pretrained` and by the hub's tools without a change to the mathematics:
# a version, a path of the author's machine, a commit, and the dtype to load into, which here is
# the node's own choice (the dtype of the weights themselves is part of their bytes).
VOLATILE_KEYS = frozenset(
    {"transformers_version", "_name_or_path", "_commit_hash", "torch_dtype", "dtype"}
)

CHUNK_BYTES = 8 << 20


def model_digest(config: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """SHA-256 (hex) over the canonical config and each weights file's name and SHA-256.

    The index of a sharded model is left out: it follows from the files, and its metadata varies.
    """
    content = {"config": _stable(config), "files": dict(files)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stable(value: Any) -> Any:
    """`value` without volatile keys, in nested configs (text_config, ...) as well."""
    if isinstance(value, Mapping):
        return {k: _stable(v) for k, v in value.items() if k not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def hash_file(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of the file's content, in hex. Errors: OSError."""
    total, done = path.stat().st_size, 0
    sha = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total, f"hash {path.name}")
    return sha.hexdigest()


class HashCache:
    """Remembers the hashes of local files, so that a restart does not read them all again.

    A file counts as unchanged while its real path, size, modification time and inode are. The
    cache is a convenience: where it cannot be read or written, files are hashed again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def sha256(self, path: Path, progress: Progress | None = None) -> str:
        """SHA-256 of `path` in hex, from the cache if the file is unchanged. Errors: OSError."""
        key = self._key(path)
        known = self._load().get(key)
        if known is not None:
            return known
        digest = hash_file(path, progress)
        if self._key(path) == key:  # else it changed while it was read
            self._store(path, key, digest)
        return digest

    @staticmethod
    def _key(path: Path) -> str:
        real = path.resolve()
        stat = real.stat()
        return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}:{real}"

    def _load(self) -> dict[str, str]:
        try:
            content = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(content, dict):
            return {}
        return {k: v for k, v in content.items() if isinstance(v, str) and is_sha256(v)}

    def _store(self, path: Path, key: str, digest: str) -> None:
        suffix = f":{path.resolve()}"
        entries = {k: v for k, v in self._load().items() if not k.endswith(suffix)}
        entries[key] = digest
        try:
            write_atomically(self._path, json.dumps(entries, indent=0).encode())
        except OSError as error:
            log.warning("hash cache not written path=%s error=%s", self._path, error)


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 as hubs and this module write it."""
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
