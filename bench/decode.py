"""One session over the nodes, against one process: `swarmd bench decode`, with its options.

python bench/decode.py [--help]
"""

from __future__ import annotations

import sys

from swarmd.cli.main import main

if __name__ == "__main__":
    # What it writes down as its command is then the one that everybody has.
    sys.argv = ["swarmd", "bench", "decode", *sys.argv[1:]]
    main()
