"""Whose request a request is: who takes turns with whom.

There are no identities yet, so a client's own word counts, and otherwise the address that its call
comes from: this function is where what a certificate says will be asked for.
"""

from __future__ import annotations

import hashlib

from swarmd.core.errors import RequestError

TENANT_BYTES = 8
MAX_CLIENT = 256


def tenant_of(client: str, peer: str) -> bytes:
    """Return an opaque name for the sender of a request; raises RequestError.

    `client` is what it calls itself, `peer` gRPC's name for its connection, such as
    "ipv4:10.0.0.7:51234": of that the port is left out, since one client may have many.
    """
    if len(client) > MAX_CLIENT:
        raise RequestError(f"a client's name of {len(client)} characters; at most {MAX_CLIENT} fit")
    host = peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
    name = f"name {client}" if client else f"host {host}"
    return hashlib.blake2b(name.encode(), digest_size=TENANT_BYTES).digest()
