"""Loads the DHT of hivemind without the rest of hivemind, and so without torch.

Only `swarm.dht_child` calls this, before it imports what it needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

_WANTED = {
    "logging": ("get_logger",),
    "serializer": ("MSGPackSerializer", "SerializerBase"),
    "timed_storage": ("DHTExpiration", "TimedStorage", "ValueWithExpiration", "get_dht_time"),
}
"""What hivemind's DHT takes from `hivemind.utils`, by the module that it is defined in."""


def import_bare() -> None:
    """Lay out hivemind's packages bare, so that `hivemind.dht.node` loads alone.

    `import hivemind` brings torch and its optimisers: 2 s and 240 MiB more, for nothing that the
    DHT uses. A hivemind that is laid out differently is left to be imported as it is.
    """
    spec = importlib.util.find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("hivemind is not installed: pip install 'swarmd[node]'")
    root = spec.submodule_search_locations[0]
    for name in ("hivemind", "hivemind.dht", "hivemind.utils"):
        package = types.ModuleType(name)
        package.__path__ = [root + name.removeprefix("hivemind").replace(".", "/")]
        sys.modules[name] = package
    try:
        for module, names in _WANTED.items():
            source = importlib.import_module(f"hivemind.utils.{module}")
            for name in names:
                setattr(sys.modules["hivemind.utils"], name, getattr(source, name))
        importlib.import_module("hivemind.dht.node")
    except (ImportError, AttributeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "hivemind"]:
            del sys.modules[name]
