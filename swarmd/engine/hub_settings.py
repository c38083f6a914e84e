"""Where the hub is, who asks, and where its files are kept: huggingface_hub's own variables.

What is done with them is `hub` and `hub_client`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class HubSettings:
    """Where the hub is and how to address it, as huggingface_hub reads it from the environment."""

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    hub_cache: Path = Path()
    offline: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> HubSettings:
        """HF_ENDPOINT, HF_TOKEN (or the file that `hf auth login` leaves), HF_HUB_CACHE, HF_HOME,
        HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE.

        Read at each call: huggingface_hub reads them once, at its import.
        """
        home = hf_home(environ)
        cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return cls(
            endpoint=(environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"),
            token=_token(environ, home),
            hub_cache=_expand(cache) if cache else home / "hub",
            offline=any(
                environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
                for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            ),
        )


def hf_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps its things."""
    home = environ.get("HF_HOME")
    return _expand(home or (environ.get("XDG_CACHE_HOME") or "~/.cache") + "/huggingface")


def default_cache_dir() -> Path:
    """`$HF_HOME/swarmd`, beside huggingface_hub's own cache."""
    return hf_home() / "swarmd"


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _token(environ: Mapping[str, str], home: Path) -> str | None:
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        path = environ.get("HF_TOKEN_PATH")
        try:
            token = (_expand(path) if path else home / "token").read_text()
        except OSError:
            return None
    return token.strip() or None
