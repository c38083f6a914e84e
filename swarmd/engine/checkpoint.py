"""A model's checkpoint: config, tensors and digest, from a directory or from the hub by name.

Talking to the hub is `hub`'s business, the layout of one file `weights_file`'s, and which tensors
a span needs `weights`'.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch

from swarmd.core.errors import ModelError, WeightsError
from swarmd.engine.digest import HashCache, Progress, model_digest
from swarmd.engine.safetensors_header import Header, TensorEntry
from swarmd.engine.source import TensorMeta
from swarmd.engine.weights_file import map_file, mapped_tensor, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
PICKLED = re.compile(r"(pytorch_model.*\.bin|.*\.(pt|pth|ckpt|pkl))$")
MAX_JSON_BYTES = 64 << 20
REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)

Span = tuple[int, int]
"""Bytes `[start, end)` of one file."""


class Shard(Protocol):
    """One safetensors file of a checkpoint, of which perhaps only parts are here."""

    @property
    def where(self) -> str:
        """The file's name in errors."""
        ...

    def header(self) -> Header:
        """Its header, fetched first where the file is remote."""
        ...

    def sha256(self, progress: Progress | None) -> str:
        """SHA-256 of the whole file in hex."""
        ...

    def missing(self, spans: Sequence[Span]) -> list[Span]:
        """What of these spans is not on this machine."""
        ...

    def fetch(self, spans: Sequence[Span], progress: Progress | None) -> None:
        """Bring these spans to this machine."""
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
        self._maps: dict[str, mmap.mmap] = {}
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

        Errors: WeightsError for a name that the checkpoint does not have, HubError.
        """
        for file, spans in self._spans(names).items():
            self._shards[file].fetch(spans, progress)

    def missing_bytes(self, names: Iterable[str]) -> int:
        """How many bytes `fetch(names)` would still have to download."""
        return sum(
            end - start
            for file, spans in self._spans(names).items()
            for start, end in self._shards[file].missing(spans)
        )

    def read(self, name: str) -> torch.Tensor:
        """The tensor over memory-mapped bytes. Errors: WeightsError if absent or not fetched."""
        file, entry = self._find(name)
        shard = self._shards[file]
        if shard.missing([(entry.start, entry.end)]):
            raise WeightsError(f"tensor {name!r} of {shard.where} was not fetched")
        mapping = self._maps.get(file)
        if mapping is None:
            mapping = self._maps[file] = map_file(shard.path(), shard.where)
        return mapped_tensor(mapping, entry, shard.where)

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
            header = self._headers[file] = self._shards[file].header()
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

    def _spans(self, names: Iterable[str]) -> dict[str, list[Span]]:
        wanted = list(names)
        absent = [name for name in wanted if name not in self._files_of_tensors]
        if absent:
            raise WeightsError(
                f"{self._name} lacks {len(absent)} of {len(wanted)} tensors: {_few(absent)}"
            )
        spans: dict[str, list[Span]] = {}
        for name in wanted:
            file, entry = self._find(name)
            if entry.end > entry.start:
                spans.setdefault(file, []).append((entry.start, entry.end))
        return spans


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

    def __init__(self, path: Path, hashes: HashCache) -> None:
        self._path = path
        self._hashes = hashes

    @property
    def where(self) -> str:
        return str(self._path)

    def header(self) -> Header:
        return read_header(self._path, self.where)

    def sha256(self, progress: Progress | None) -> str:
        try:
            return self._hashes.sha256(self._path, progress)
        except OSError as error:
            raise WeightsError(f"{self._path}: cannot be read: {error.strerror}") from error

    def missing(self, spans: Sequence[Span]) -> list[Span]:
        return []

    def fetch(self, spans: Sequence[Span], progress: Progress | None) -> None:
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
    path = Path(model).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ModelError(f"{model} is a directory: --revision is for models of the hub")
        return open_directory(path, cache_dir=cache_dir, progress=progress)
    if path.exists():
        raise ModelError(f"{model} is a file: give the directory that holds config.json")
    if not REPO_ID.fullmatch(model) or ".." in model or "--" in model:
        raise ModelError(
            f"{model!r} is neither a directory on this machine nor a model's name on the hub "
            "(such as Qwen/Qwen2.5-0.5B-Instruct)"
        )
    from swarmd.engine.hub import open_repo  # huggingface_hub costs 0.5 s that directories spare

    return open_repo(model, revision=revision, cache_dir=cache_dir, progress=progress)


def open_directory(
    path: Path, *, cache_dir: Path | None = None, progress: Progress | None = None
) -> Checkpoint:
    """Open a directory in the hub's layout: config.json and single or sharded safetensors."""
    if not (path / CONFIG_FILE).is_file():
        raise ModelError(f"{path} has no {CONFIG_FILE}: not a model's directory")
    files, weight_map = choose_weights(path, sorted(os.listdir(path)), str(path))
    absent = [file for file in files if not (path / file).is_file()]
    if absent:
        raise WeightsError(f"{path} lacks {len(absent)} of {len(files)} files: {_few(absent)}")
    hashes = HashCache((cache_dir or default_cache_dir()) / "hashes.json")
    shards = {file: LocalShard(path / file, hashes) for file in files}
    name = path.resolve().name
    return Checkpoint(name, path, shards, weight_map, progress=progress)


def default_cache_dir() -> Path:
    """`$HF_HOME/swarmd`, beside huggingface_hub's own cache."""
    return hf_home() / "swarmd"


def hf_home() -> Path:
    """Where huggingface_hub keeps its things: the same variables, read at each call."""
    home = os.environ.get("HF_HOME")
    if home:
        return Path(os.path.expandvars(home)).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(cache)).expanduser() / "huggingface"


def choose_weights(
    index_dir: Path, names: Sequence[str], where: str
) -> tuple[list[str], dict[str, str] | None]:
    """The weights files among a repository's file `names`, and the index if there is one.

    As transformers does, one `model.safetensors` is preferred to an index, which is read from
    `index_dir`.
    """
    if SINGLE_FILE in names:
        return [SINGLE_FILE], None
    if INDEX_FILE in names:
        weight_map = read_weight_map(index_dir / INDEX_FILE)
        return sorted(set(weight_map.values())), weight_map
    pickled = [name for name in names if PICKLED.fullmatch(name)]
    if pickled:
        raise ModelError(
            f"{where} has its weights only in pickle files ({_few(pickled)}), which can run code "
            f"when they are read: swarmd reads only safetensors. Look for a converted copy"
        )
    raise ModelError(f"{where} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_config(path: Path) -> dict[str, Any]:
    """config.json as a dict. Errors: ModelError."""
    return _read_object(path, ModelError)


def read_weight_map(path: Path) -> dict[str, str]:
    """File of each tensor, out of an index, with every file name checked. Errors: WeightsError."""
    weight_map = _read_object(path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path}: no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_file(file) or not _is_safetensors(file):
            raise WeightsError(f"{path}: tensor {name!r} is said to lie in {file!r}: refused")
    return weight_map


def is_plain_file(name: str) -> bool:
    """Whether a repository's file name stays inside the repository, on every system."""
    parts = PurePosixPath(name).parts
    return (
        0 < len(name) < 1024
        and name.isprintable()
        and not any(c in name for c in '\\:*?"<>|')
        and name == "/".join(parts)
        and not any(part in ("..", ".", "/") for part in parts)
    )


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors")


def _read_object(path: Path, error_type: type[ModelError] | type[WeightsError]) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error_type(f"{path}: {size} bytes, at most {MAX_JSON_BYTES} are read")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise error_type(f"{path}: a JSON {type(content).__name__}, not an object")
    return content


def _few(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
