"""Whole nodes under a fake clock and a fake network, with faults from a seed.

What runs is the production code of pipeline, swarm and node: hop tables, drivers, coordinators,
routes, presence, moves and a node's whole life. Only the ends are fakes: links, directory, compute,
loading, disk faults and clients. `python -m swarmd.sim SEED` runs one seed again. No room imports
this one.
"""

from swarmd.engine.lean_import import import_lean

import_lean()  # before anything imports the engine: half of what a process takes to start
