"""The engine's tests run on the transformers that a daemon has."""

from swarmd.engine.lean_import import import_lean

import_lean()
