"""`swarmd bench`: measures swarms on this machine against baselines that run in the same go.

The verb is `verb`, each scenario is a file of its own; all else is what they share.
"""

from swarmd.cli.bench.verb import bench

__all__ = ["bench"]
