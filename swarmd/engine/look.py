"""A look at what MODEL names, without torch: what a look shows is told at once, not after seconds.

Opening a model is `checkpoint`'s business; so is whatever only its tensors show.
"""

from __future__ import annotations

import re
from pathlib import Path

from swarmd.core.errors import ModelError
from swarmd.engine.disk import disk_errors
from swarmd.engine.families import refuse_unsplittable
from swarmd.engine.hub_settings import HubSettings
from swarmd.engine.repo_files import CONFIG_FILE, files_of_directory, find_weights, read_config
from swarmd.engine.retry import HubUnreachable, NoConnection, RetryPolicy

REPO_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
HASTY = RetryPolicy(attempts=2, first_s=0.2, longest_s=0.0)
HASTY_TIMEOUT_S = 1.0


def directory_of(model: str, revision: str | None = None) -> Path | None:
    """The directory that `model` is; None: a name to look for on the hub. Errors: ModelError."""
    path = Path(model).expanduser()
    if model and path.is_dir():
        if revision is not None:
            raise ModelError(f"{model} is a directory: --revision is for models of the hub")
        return path
    if path.is_file():
        raise ModelError(f"{model} is a file: give the directory that holds config.json")
    if not REPO_ID.fullmatch(model) or ".." in model or "--" in model:
        raise ModelError(
            f"{model!r} is neither a directory on this machine nor a model's name on the hub "
            "(such as Qwen/Qwen2.5-0.5B-Instruct)"
        )
    return None


def look_for(model: str, revision: str | None = None) -> None:
    """Raise what opening it would raise, where a look is enough to know.

    A hub that is slow or overloaded is given the benefit of the doubt: opening has more patience.
    Errors: ModelError, WeightsError, HubError.
    """
    directory = directory_of(model, revision)
    if directory is None:
        return _look_on_hub(model, revision)
    files_of_directory(directory)
    config = read_config(directory / CONFIG_FILE)
    refuse_unsplittable(
        str(config.get("model_type")), is_encoder_decoder=config.get("is_encoder_decoder") is True
    )
    return None


def _look_on_hub(repo: str, revision: str | None) -> None:
    # httpx costs 0.1 s that directories spare.
    import httpx

    from swarmd.engine.hub_client import HubClient
    from swarmd.engine.hub_library import library_of

    timeout = httpx.Timeout(HASTY_TIMEOUT_S)
    client = HubClient(repo, HubSettings.from_environ(), HASTY, timeout=timeout)
    library = library_of(client)
    try:
        with disk_errors(library.room):
            commit = library.commit(revision or "main")
    except NoConnection:
        raise
    except HubUnreachable:
        return
    find_weights(commit.files, repo)
