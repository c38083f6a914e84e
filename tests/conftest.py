"""One compute thread for every test and every process that a test starts.

Two threads that share two cores with anything else wait for the scheduler at each operation, and
the order of a sum, so its last bits, follows the number of threads.

Properties are tried on the same examples every time, so that a run can be repeated;
TEST_EXAMPLES=random looks for others.
"""

import os

from hypothesis import settings

os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("steady", derandomize=True)
settings.register_profile("random")
settings.load_profile(os.environ.get("TEST_EXAMPLES", "steady"))
