"""swarmd: run one model across many machines."""

__version__ = "0.1.0"
