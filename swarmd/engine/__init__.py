"""The maths of one stage."""

import os

# transformers warns about names in other people's config files; a node's log is for its operator.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
