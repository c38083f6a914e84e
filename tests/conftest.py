"""One compute thread for every test and every process that a test starts.

Two threads that share two cores with anything else wait for the scheduler at each operation, and
the order of a sum, so its last bits, follows the number of threads.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
