"""Faults in real daemons: six `swarmd serve` processes, clients at work, one fault at a time.

`python -m bench.chaos SCENARIO ...` prints one JSON verdict per scenario. What the same code does
under a fake clock and a fake network is tests/pipeline's.
"""
