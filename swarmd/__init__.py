"""swarmd: run one model across many machines. The public door for those who import it.

Names are loaded when they are first used: `import swarmd` alone brings in no gRPC, and nothing
here ever brings in torch. What a node is made of is in `swarmd.node`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# gRPC reads these when it is first imported. Its fork handlers cost time and can deadlock; and it
# writes to stderr whenever a node dies, which here is not news.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

if TYPE_CHECKING:
    from swarmd.client import AsyncClient, Client, ResumePolicy
    from swarmd.core.errors import (
        AmbiguousModel,
        CapacityError,
        ConfigError,
        CoverageError,
        DeadlineExceeded,
        DirectoryError,
        HubError,
        HubRefused,
        KVExhausted,
        LeaseEnded,
        ModelError,
        NodeLoading,
        PeerError,
        PeerUnreachable,
        PromptTooLong,
        ProtocolError,
        QueueFull,
        RequestError,
        SessionError,
        SessionLost,
        SwarmdError,
        UnknownModel,
        UsageError,
        WeightsError,
        WrongModel,
    )
    from swarmd.core.results import (
        Completion,
        Coordinator,
        KeptSession,
        ModelStatus,
        PeerStatus,
        RouteHop,
        SwarmStatus,
        TokenOutput,
        TopLogprob,
    )

__all__ = [
    "AmbiguousModel",
    "AsyncClient",
    "CapacityError",
    "Client",
    "Completion",
    "ConfigError",
    "Coordinator",
    "CoverageError",
    "DeadlineExceeded",
    "DirectoryError",
    "HubError",
    "HubRefused",
    "KVExhausted",
    "KeptSession",
    "LeaseEnded",
    "ModelError",
    "ModelStatus",
    "NodeLoading",
    "PeerError",
    "PeerStatus",
    "PeerUnreachable",
    "PromptTooLong",
    "ProtocolError",
    "QueueFull",
    "RequestError",
    "ResumePolicy",
    "RouteHop",
    "SessionError",
    "SessionLost",
    "SwarmStatus",
    "SwarmdError",
    "TokenOutput",
    "TopLogprob",
    "UnknownModel",
    "UsageError",
    "WeightsError",
    "WrongModel",
    "__version__",
]

_CLIENT = ("AsyncClient", "Client", "ResumePolicy")
_RESULTS = (
    "Completion",
    "Coordinator",
    "KeptSession",
    "ModelStatus",
    "PeerStatus",
    "RouteHop",
    "SwarmStatus",
    "TokenOutput",
    "TopLogprob",
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'swarmd' has no attribute {name!r}")
    home = "client" if name in _CLIENT else "core.results" if name in _RESULTS else "core.errors"
    return getattr(importlib.import_module(f"swarmd.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
