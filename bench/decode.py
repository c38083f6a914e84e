"""One session over two daemons against one process: the ratio, and the CPU per token and hop.

The same as `swarmd bench decode`, with the result kept in bench/results.
"""

from __future__ import annotations

import sys
from pathlib import Path

from swarmd.cli.main import run

RESULT = Path(__file__).parent / "results" / "decode.json"

if __name__ == "__main__":
    sys.exit(run(["bench", "decode", "--output", str(RESULT), *sys.argv[1:]]))
