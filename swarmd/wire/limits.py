"""The sizes that the wire allows: everything from the network is held against these first.

What a session may hold is checked by `swarmd.pipeline` against the model and the KV budget.
"""

from __future__ import annotations

PROTOCOL = 1
"""Version of the link protocol."""

MAX_MESSAGE_BYTES = 1 << 20
"""Largest message that a link sends; a larger frame goes in fragments."""

FRAGMENT_BYTES = 256 << 10
"""Payload of one fragment: small, so that a decode step waits for little."""

MAX_FRAME_BYTES = 64 << 20
"""Largest frame that is put together from fragments."""

MAX_ASSEMBLY_BYTES = 64 << 20
"""All unfinished frames of one link together; a sender cuts up one at a time."""

MAX_NODE_ASSEMBLY_BYTES = 512 << 20
"""All unfinished frames of all links of a node together, unless it is told otherwise."""

MAX_UNFINISHED = 16
"""Unfinished frames of one link."""

MAX_UNFOLDED_BYTES = 64 << 20
"""What a reassembled frame may take in memory once parsed, besides the bytes of its tensors."""

MAX_LINKS = 1024
"""Links of one node, those included that have not said who they are."""

MAX_CALLS = 4096
"""Calls that a node answers at once beside its links; gRPC refuses more by itself."""

MAX_LINKS_PER_PEER = 4
"""Two when both sides dial at once; twice that when a peer comes back before it was missed."""

RECEIVE_MESSAGE_BYTES = 4 << 20
"""gRPC's own limit, finite and counted after decompression: room for a client's long prompt."""

MAX_OUTBOUND_BYTES = 256 << 20
"""What may wait for one slow peer before its link is given up."""

MAX_POSITIONS = 1 << 24
MAX_CHUNKS = 1 << 12
MAX_TEXT = 1000
"""Characters of an explanatory message."""

MAX_TOP = 64
"""Likely tokens that are reported beside one."""

MAX_BLOCKS = 1 << 12
MAX_STEPS = 1 << 12
"""Steps or tokens in one message."""
