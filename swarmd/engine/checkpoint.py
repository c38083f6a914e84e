"""A model's checkpoint: config, tensors and digest, from a directory or from the hub by name.

Talking to the hub is `hub`'s business, the layout of one file `weights_file`'s, and which tensors
a span needs `weights`'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from swarmd.core.errors import WeightsError
from swarmd.engine.byte_ranges import Range, total
from swarmd.engine.digest import HashCache, model_digest
from swarmd.engine.disk import require_space
from swarmd.engine.hub_settings import default_cache_dir
from swarmd.engine.look import directory_of
from swarmd.engine.progress import Meter, Progress
from swarmd.engine.repo_files import CONFIG_FILE, few, files_of_directory, read_config
from swarmd.engine.safetensors_header import Header, TensorEntry
from swarmd.engine.source import TensorMeta
from swarmd.engine.weights_file import read_header, read_tensor


class Shard(Protocol):
    """One safetensors file of a checkpoint, of which perhaps only parts are here."""

    @property
    def where(self) -> str:
        """The file's name in errors."""
        ...

    def header(self, progress: Progress | None) -> Header:
        """Its header, fetched first where the file is remote."""
        ...

    def sha256(self, progress: Progress | None) -> str:
        """SHA-256 of the whole file in hex."""
        ...

    def missing(self, ranges: Sequence[Range]) -> list[Range]:
        """What of these ranges is not on this machine."""
        ...

    def fetch(self, ranges: Sequence[Range], advance: Callable[[int], None]) -> None:
        """Bring these ranges to this machine; `advance` hears of every byte, from any thread."""
        ...

    def path(self) -> Path:
        """The file on this machine, with holes where nothing was fetched."""
        ...


class Checkpoint:
    """Implements `engine.source.Source`; `fetch` what is to be `read`."""

    def __init__(
        self,
        name: str,
        files_dir: Path,
        shards: Mapping[str, Shard],
        weight_map: Mapping[str, str] | None,
        *,
        commit: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """`weight_map` names the shard of each tensor; None for a single shard."""
        self._name = name
        self._files_dir = files_dir
        self._config = read_config(files_dir / CONFIG_FILE)
        self._shards = dict(shards)
        self._weight_map = weight_map
        self._progress = progress
        self._headers: dict[str, Header] = {}
        self.commit = commit
        """The hub's commit that all files were taken from; None for a directory."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def files_dir(self) -> Path:
        return self._files_dir

    @cached_property
    def digest(self) -> str:
        """See `Source.digest`; for a directory its files are hashed once and remembered."""
        hashes = {file: shard.sha256(self._progress) for file, shard in self._shards.items()}
        return model_digest(self._config, hashes)

    def config_dict(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(json.dumps(self._config))
        return config

    def tensors(self) -> Mapping[str, TensorMeta]:
        """All names at once; a tensor's dtype and shape cost its file's header on first use."""
        return _TensorTable(self, self._files_of_tensors)

    def fetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Bring these tensors' bytes here: nothing to do in a directory, HTTP ranges on the hub.

        An exception out of `progress` ends the download; what arrived is kept.
        Errors: WeightsError for a name that the checkpoint does not have, HubError.
        """
        ranges = self._ranges(names)
        missing = {file: self._shards[file].missing(wanted) for file, wanted in ranges.items()}
        meter = Meter(progress, sum(map(total, missing.values())), f"download {self._name}")
        if meter.total:
            require_space(self._shards[next(iter(missing))].path().parent, meter.total)
        for file, parts in missing.items():
            if parts:
                self._shards[file].fetch(parts, meter.advance)

    def missing_bytes(self, names: Iterable[str]) -> int:
        """How many bytes `fetch(names)` would still have to download."""
        ranges = self._ranges(names)
        return sum(total(self._shards[file].missing(wanted)) for file, wanted in ranges.items())

    def read(self, name: str) -> torch.Tensor:
        """The tensor in memory of its own. Errors: WeightsError if absent or not fetched."""
        file, entry = self._find(name)
        shard = self._shards[file]
        if entry.meta.nbytes and shard.missing([(entry.start, entry.end)]):
            raise WeightsError(f"tensor {name!r} of {shard.where} was not fetched")
        return read_tensor(shard.path(), entry, shard.where)

    def entry(self, name: str) -> TensorEntry:
        """Dtype, shape and place of a tensor in its file. Errors: WeightsError."""
        return self._find(name)[1]

    @cached_property
    def _files_of_tensors(self) -> Mapping[str, str]:
        if self._weight_map is not None:
            return self._weight_map
        (file,) = self._shards
        return dict.fromkeys(self._header(file).tensors, file)

    def _header(self, file: str) -> Header:
        header = self._headers.get(file)
        if header is None:
            header = self._headers[file] = self._shards[file].header(self._progress)
        return header

    def _find(self, name: str) -> tuple[str, TensorEntry]:
        file = self._files_of_tensors.get(name)
        if file is None:
            raise WeightsError(f"{self._name} has no tensor {name!r}")
        entry = self._header(file).tensors.get(name)
        if entry is None:
            raise WeightsError(
                f"the index of {self._name} puts tensor {name!r} into {file}, "
                "whose header does not list it"
            )
        return file, entry

    def _ranges(self, names: Iterable[str]) -> dict[str, list[Range]]:
        wanted = list(names)
        absent = [name for name in wanted if name not in self._files_of_tensors]
        if absent:
            raise WeightsError(
                f"{self._name} lacks {len(absent)} of {len(wanted)} tensors: {few(absent)}"
            )
        ranges: dict[str, list[Range]] = {}
        for name in wanted:
            file, entry = self._find(name)
            if entry.end > entry.start:
                ranges.setdefault(file, []).append((entry.start, entry.end))
        return ranges


class _TensorTable(Mapping[str, TensorMeta]):
    """Names from the index; metas from the headers, read when asked for."""

    def __init__(self, checkpoint: Checkpoint, files: Mapping[str, str]) -> None:
        self._checkpoint = checkpoint
        self._files = files

    def __getitem__(self, name: str) -> TensorMeta:
        if name not in self._files:
            raise KeyError(name)
        return self._checkpoint.entry(name).meta

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class LocalShard:
    """A complete safetensors file."""

    def __init__(self, path: Path, hashes: HashCache, sha256: str | None = None) -> None:
        """`sha256` where it is known from a content-addressed cache."""
        self._path = path
        self._hashes = hashes
        self._sha256 = sha256

    @property
    def where(self) -> str:
        return str(self._path)

    def header(self, progress: Progress | None) -> Header:
        return read_header(self._path, self.where)

    def sha256(self, progress: Progress | None) -> str:
        try:
            return self._sha256 or self._hashes.sha256(self._path, progress)
        except OSError as error:
            raise WeightsError(f"{self._path}: cannot be read: {error.strerror}") from error

    def missing(self, ranges: Sequence[Range]) -> list[Range]:
        return []

    def fetch(self, ranges: Sequence[Range], advance: Callable[[int], None]) -> None:
        """Nothing to do."""

    def path(self) -> Path:
        return self._path


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open a directory, or a hub repository by its name (`Qwen/Qwen2.5-0.5B-Instruct`).

    `revision` is a branch, tag or commit of the hub's repository. `cache_dir` holds the parts of
    weights files and the hashes of local ones; by default `$HF_HOME/swarmd`. Of a hub's model only
    config, tokenizer and index are downloaded here; weights wait for `fetch`.

    Errors: ModelError (no such model, no config, only pickled weights), WeightsError (a damaged
    or missing file), HubError.
    """
    directory = directory_of(model, revision)
    if directory is not None:
        return open_directory(directory, cache_dir=cache_dir, progress=progress)
    from swarmd.engine.hub import open_repo  # huggingface_hub costs 0.5 s that directories spare

    return open_repo(model, revision=revision, cache_dir=cache_dir, progress=progress)


def open_directory(
    path: Path, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Open a directory in the hub's layout: config.json and single or sharded safetensors."""
    files, weight_map = files_of_directory(path)
    hashes = HashCache((cache_dir or default_cache_dir()) / "hashes.json")
    shards = {file: LocalShard(path / file, hashes) for file in files}
    name = path.resolve().name
    return Checkpoint(name, path, shards, weight_map, progress=progress)
