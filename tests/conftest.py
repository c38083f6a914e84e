"""One compute thread for every test and every process that a test starts.

Two threads that share two cores with anything else wait for the scheduler at each operation, and
the order of a sum, so its last bits, follows the number of threads.

Properties are tried on the same examples every time, so that a run can be repeated;
TEST_EXAMPLES=random looks for others. None of them has a deadline: on a busy machine any of them
can take long.

Ctrl-C is heard, whoever runs the tests: a shell has what it starts in the background ignore it, and
what a test starts would inherit that.
"""

import os
import signal
import threading

import pytest
from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile(os.environ.get("TEST_EXAMPLES", "steady"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist's loadgroup, all that use `swarm` are in one process, the rest a file in one."""
    for item in items:
        group = "swarm" if "swarm" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
