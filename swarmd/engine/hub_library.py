"""Which commit a revision of a hub's repository is, and what lies in it: asked once, remembered.

Bringing the files here is `hub`'s business. Kept in the repository's room, a directory:

    refs/REVISION         the commit that a branch or tag pointed to when it was last asked for
    commits/COMMIT.json   the files of a commit: name, size, SHA-256
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swarmd.core.errors import HubError
from swarmd.engine.digest import is_sha256
from swarmd.engine.disk import write_atomically
from swarmd.engine.hub_client import HubClient, RemoteFile
from swarmd.engine.hub_settings import default_cache_dir
from swarmd.engine.repo_files import is_plain_file
from swarmd.engine.retry import HubUnreachable

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
MAX_FILE_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Commit:
    """One state of a repository, which never changes."""

    sha: str
    files: Mapping[str, RemoteFile]


class Library:
    """The commits of one repository. Methods raise HubError, and OSError for the disk's sake."""

    def __init__(self, client: HubClient, room: Path, hub_cache: Path) -> None:
        """`hub_cache` is huggingface_hub's own directory for this repository: read, not written."""
        self._client = client
        self.room = room
        self._hub_cache = hub_cache

    def commit(self, revision: str) -> Commit:
        """The commit of a revision; as it was last known if the hub cannot be reached."""
        if _COMMIT.fullmatch(revision) and (known := self._load(revision)) is not None:
            return known
        if self._client.settings.offline:
            offline = HubError("HF_HUB_OFFLINE is set: unset it to download the model")
            return self._known(revision, offline)
        try:
            commit = _parse(self._client.repo_info(revision), self._client.repo)
        except HubUnreachable as error:
            known = self._known(revision, error)
            log.warning("hub unreachable, using what is known error=%s", error)
            return known
        self._store(revision, commit)
        return commit

    def _known(self, revision: str, reason: HubError) -> Commit:
        """The commit without the hub. Raises an error of the same kind as `reason`."""
        sha = revision if _COMMIT.fullmatch(revision) else self._ref(revision)
        commit = None if sha is None else self._load(sha) or self._snapshot(sha)
        if commit is None:
            raise type(reason)(
                f"{self._client.repo} is no directory here, its revision {revision!r} was never "
                f"opened on this machine, and {reason}"
            )
        return commit

    def _ref(self, revision: str) -> str | None:
        if not is_plain_file(revision):
            return None
        for path in (self._ref_path(revision), self._hub_cache / "refs" / revision):
            try:
                sha = path.read_text().strip()
            except (OSError, ValueError):
                continue
            if _COMMIT.fullmatch(sha):
                return sha
        return None

    def _ref_path(self, revision: str) -> Path:
        return self.room / "refs" / quote(revision, safe="")

    def _commit_path(self, sha: str) -> Path:
        return self.room / "commits" / f"{sha}.json"

    def _load(self, sha: str) -> Commit | None:
        try:
            files = json.loads(self._commit_path(sha).read_bytes())["files"]
            return Commit(sha, {file["name"]: RemoteFile(**file) for file in files})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _store(self, revision: str, commit: Commit) -> None:
        content = {"files": [asdict(file) for file in commit.files.values()]}
        write_atomically(self._commit_path(commit.sha), json.dumps(content, indent=1).encode())
        write_atomically(self._ref_path(revision), commit.sha.encode())

    def _snapshot(self, sha: str) -> Commit | None:
        """What other tools have downloaded of a commit."""
        snapshot = self._hub_cache / "snapshots" / sha
        paths = [path for path in sorted(snapshot.rglob("*")) if path.is_file()]
        files = [_cached_file(path, path.relative_to(snapshot).as_posix()) for path in paths]
        return Commit(sha, {file.name: file for file in files}) if files else None


def library_of(client: HubClient, cache_dir: Path | None = None) -> Library:
    """The client's repository, kept in `cache_dir` (by default `$HF_HOME/swarmd`)."""
    folder = f"models--{client.repo.replace('/', '--')}"
    room = (cache_dir or default_cache_dir()) / folder
    return Library(client, room, client.settings.hub_cache / folder)


def _cached_file(path: Path, name: str) -> RemoteFile:
    """huggingface_hub names a large file's blob by its SHA-256, a small one's by its git hash."""
    blob = path.resolve().name
    return RemoteFile(name, path.stat().st_size, blob if is_sha256(blob) else None)


def _parse(info: Mapping[str, Any], repo: str) -> Commit:
    """Check the hub's description of a repository. Errors: HubError."""
    sha, siblings = info.get("sha"), info.get("siblings")
    if not isinstance(sha, str) or not _COMMIT.fullmatch(sha) or not isinstance(siblings, list):
        raise HubError(f"the hub's description of {repo} lacks its commit or its files")
    files = [_parse_file(entry, repo) for entry in siblings]
    return Commit(sha, {file.name: file for file in files})


def _parse_file(entry: Any, repo: str) -> RemoteFile:
    fields = entry if isinstance(entry, dict) else {}
    name, lfs = fields.get("rfilename"), fields.get("lfs")
    if not isinstance(name, str) or not is_plain_file(name):
        raise HubError(f"{repo} lists a file named {name!r}: refused")
    large = lfs if isinstance(lfs, dict) else {}
    size, sha256 = large.get("size", fields.get("size")), large.get("sha256")
    if type(size) is not int or not 0 <= size < MAX_FILE_BYTES:
        raise HubError(f"the hub gives {name} of {repo} the size {size!r}")
    if large and not (isinstance(sha256, str) and is_sha256(sha256)):
        raise HubError(f"the hub gives {name} of {repo} the SHA-256 {sha256!r}")
    return RemoteFile(name, size, sha256)
