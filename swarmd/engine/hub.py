"""A model of the hub, by name: its small files whole, of its weights only what is fetched.

HTTP and retries are `hub_client`'s business, commits `hub_library`'s, and what was fetched before
`partial_file`'s. Small files go through huggingface_hub into its own cache, where other tools find
them; a weights file that already lies there is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import hf_hub_download

# HTTPError is that of whichever HTTP library its version uses.
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import disable_progress_bars

from swarmd.core.errors import HubError, WeightsError
from swarmd.engine.byte_ranges import Range, subtract, total
from swarmd.engine.checkpoint import Checkpoint, LocalShard, Shard
from swarmd.engine.digest import HashCache, hash_file
from swarmd.engine.disk import disk_errors
from swarmd.engine.hub_client import HubClient, RemoteFile, explain
from swarmd.engine.hub_library import Commit, library_of
from swarmd.engine.hub_settings import HubSettings
from swarmd.engine.partial_file import PartialFile
from swarmd.engine.progress import Meter, Progress
from swarmd.engine.range_download import DEFAULT_FETCH, FetchPolicy, download
from swarmd.engine.repo_files import CONFIG_FILE, choose_weights, few, find_weights, is_small_file
from swarmd.engine.retry import DEFAULT_RETRY, HubUnreachable, RetryPolicy
from swarmd.engine.safetensors_header import PREFIX_BYTES, Header, header_bytes, parse_header

# The largest tokenizers take some 35 MB.
MAX_SMALL_BYTES = 256 << 20


def open_repo(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    settings: HubSettings | None = None,
    fetch: FetchPolicy = DEFAULT_FETCH,
    retry: RetryPolicy = DEFAULT_RETRY,
    sleep: Callable[[float], object] | None = None,
) -> Checkpoint:
    """Open the hub's model `repo` at `revision` (a branch, tag or commit; by default `main`).

    Its small files are downloaded here, weights when they are fetched. What an earlier call
    brought is not asked for again, and does when the hub cannot be reached. `sleep` replaces every
    wait before a retry. Errors: ModelError, WeightsError, HubError.
    """
    settings = settings or HubSettings.from_environ()
    client = HubClient(repo, settings, retry, sleep)
    library = library_of(client, cache_dir)
    with disk_errors(library.room):
        commit = library.commit(revision or "main")
        find_weights(commit.files, repo)
        files_dir = _small_files(client, commit, progress)
        names, weight_map = choose_weights(files_dir, sorted(commit.files), repo)
        absent = [name for name in names if name not in commit.files]
        if absent:
            raise WeightsError(f"{repo} lacks {len(absent)} of {len(names)} files: {few(absent)}")
        open_shard = _ShardOpener(client, commit, files_dir, library.room, fetch)
        shards = {name: open_shard(commit.files[name]) for name in names}
    return Checkpoint(repo, files_dir, shards, weight_map, commit=commit.sha, progress=progress)


class HubShard:
    """One safetensors file of a commit, of which parts are here."""

    def __init__(
        self, client: HubClient, file: RemoteFile, commit: str, room: Path, policy: FetchPolicy
    ) -> None:
        """`file.sha256` must be known: it names the blob, and pins it in every answer."""
        assert file.sha256 is not None
        self._client = client
        self._file = file
        self._sha256 = file.sha256
        self._commit = commit
        self._policy = policy
        self._blob = PartialFile(room / "blobs" / file.sha256, file.size)
        self._held: list[Range] = []  # as last read from the journal: it only grows

    @property
    def where(self) -> str:
        return f"{self._client.repo}/{self._file.name}"

    def path(self) -> Path:
        return self._blob.path

    def sha256(self, progress: Progress | None) -> str:
        return self._sha256

    def header(self, progress: Progress | None) -> Header:
        """Fetch the 8 bytes of its length, then the header itself."""
        size, what = self._file.size, f"header of {self._file.name}"

        def still_none(nbytes: int) -> None:
            """Eight bytes are nothing to show, but whoever waits for them may give up."""
            if progress is not None and nbytes == 0:
                progress(0, PREFIX_BYTES, what)

        prefix = self._bytes(0, min(PREFIX_BYTES, size), still_none)
        length = header_bytes(prefix, size, self.where)
        meter = Meter(progress, length, what)
        content = self._bytes(PREFIX_BYTES, PREFIX_BYTES + length, meter.advance)
        return parse_header(content, size, self.where)

    def missing(self, ranges: Sequence[Range]) -> list[Range]:
        missing = subtract(ranges, self._held)
        if missing:
            with disk_errors(self._blob.path):
                self._held = self._blob.held()
            missing = subtract(ranges, self._held)
        return missing

    def fetch(self, ranges: Sequence[Range], advance: Callable[[int], None]) -> None:
        missing = self.missing(ranges)
        if not missing:
            return
        if self._client.settings.offline:
            raise HubError(
                f"{total(missing)} bytes of {self.where} are not in {self._blob.path.parent}, and "
                "HF_HUB_OFFLINE is set: unset it to download them"
            )
        with disk_errors(self._blob.path):
            download(
                self._client, self._file, self._commit, missing, self._blob, self._policy, advance
            )
            self._verify()

    def _bytes(self, start: int, end: int, advance: Callable[[int], None]) -> bytes:
        self.fetch([(start, end)], advance)
        with disk_errors(self._blob.path):
            return self._blob.read(start, end)

    def _verify(self) -> None:
        """A file that has become complete can be held against its hash; parts of one cannot."""
        if self._blob.missing([(0, self._file.size)]):
            return
        got = hash_file(self._blob.path)
        if got != self._sha256:
            self._blob.forget()
            self._held = []
            raise HubError(
                f"{self.where} arrived with SHA-256 {got}, expected {self._sha256}: "
                "it was dropped; start again"
            )


class _ShardOpener:
    """Find the best way to a weights file: huggingface_hub's cache, ranges, or the whole file."""

    def __init__(
        self, client: HubClient, commit: Commit, files_dir: Path, room: Path, fetch: FetchPolicy
    ) -> None:
        self._client = client
        self._commit = commit
        self._files_dir = files_dir
        self._room = room
        self._fetch = fetch
        self._hashes = HashCache(room.parent / "hashes.json")

    def __call__(self, file: RemoteFile) -> Shard:
        cached = self._files_dir / file.name
        if cached.is_file() and cached.stat().st_size == file.size:
            known = file.sha256 if cached.resolve().name == file.sha256 else None
            return LocalShard(cached, self._hashes, known)
        if file.sha256 is None:
            # Not in large-file storage, so the hub allows it at most 10 MB, and only its content
            # tells its hash.
            whole = _download_whole(self._client, self._commit, file)
            return LocalShard(whole, self._hashes)
        return HubShard(self._client, file, self._commit.sha, self._room, self._fetch)


def _small_files(client: HubClient, commit: Commit, progress: Progress | None) -> Path:
    """Bring config, tokenizer and index; the directory in which they lie as in the repository."""
    files = [file for name, file in commit.files.items() if is_small_file(name)]
    for file in files:
        if file.size > MAX_SMALL_BYTES:
            raise HubError(f"{client.repo}/{file.name}: {file.size} bytes are too many: refused")
    disable_progress_bars()  # the caller draws one, for everything
    with ThreadPoolExecutor(4, "small-files") as pool:
        paths = list(pool.map(lambda file: _download_whole(client, commit, file), files))
    size = sum(file.size for file in files)
    if progress is not None:
        progress(size, size, "config and tokenizer")
    return next(path.parent for path in paths if path.name == CONFIG_FILE)


def _download_whole(client: HubClient, commit: Commit, file: RemoteFile) -> Path:
    settings = client.settings
    try:
        path = hf_hub_download(
            client.repo,
            file.name,
            revision=commit.sha,
            cache_dir=settings.hub_cache,
            endpoint=settings.endpoint,
            token=settings.token or False,
            local_files_only=settings.offline,
        )
    except HfHubHTTPError as error:
        status, headers = error.response.status_code, error.response.headers
        raise explain(client.repo, settings, status, headers, file.name) from error
    except (HTTPError, OSError, HFValidationError) as error:
        cause = error.__cause__ or error
        raise HubUnreachable(f"{client.repo}/{file.name}: not downloaded: {cause}") from error
    return Path(path)
