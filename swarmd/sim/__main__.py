"""Runs seeds: `python -m swarmd.sim SEED ...`, or `--seeds N` of them over several processes."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from swarmd.sim.progress import Progress
from swarmd.sim.seeds import prepare, run_seed


def main() -> int:
    """Return 1 if any seed failed."""
    parser = argparse.ArgumentParser(prog="python -m swarmd.sim", description=__doc__)
    parser.add_argument("seed", nargs="*", type=int)
    parser.add_argument("--seeds", type=int, default=0, help="run so many seeds")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args()
    seeds = args.seed or range(args.first, args.first + args.seeds)
    jobs = min(args.jobs, max(1, len(seeds)))
    progress = Progress(len(seeds), time.monotonic())
    history: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(jobs, prepare) as pool:
        for seed, happened, wrong in pool.imap_unordered(run_seed, seeds, chunksize=8):
            history += happened
            if wrong:
                print(f"seed {seed}: {wrong}\n  again: python -m swarmd.sim {seed}", flush=True)
            line = progress.one_more(time.monotonic(), failed=bool(wrong))
            if line:
                print(line, file=sys.stderr, flush=True)
    listed = ", ".join(f"{name} {count}" for name, count in history.most_common())
    seconds = time.monotonic() - progress.began
    print(f"{len(seeds)} seeds, {progress.failed} failed, {seconds:.0f} s; {listed}")
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())
