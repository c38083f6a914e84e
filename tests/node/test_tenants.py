"""Whose request it is: by name, or by the machine that it comes from."""

from __future__ import annotations

import pytest

from swarmd.core.errors import RequestError
from swarmd.node.tenants import tenant_of


def test_connections_of_one_machine_are_one_tenant_unless_they_have_names() -> None:
    assert tenant_of("", "ipv4:10.0.0.7:1") == tenant_of("", "ipv4:10.0.0.7:2")
    assert tenant_of("", "ipv6:%5B::1%5D:1") == tenant_of("", "ipv6:%5B::1%5D:2")
    assert tenant_of("", "ipv4:10.0.0.7:1") != tenant_of("", "ipv4:10.0.0.8:1")
    assert tenant_of("ann", "ipv4:10.0.0.7:1") == tenant_of("ann", "ipv4:10.0.0.8:1")
    assert tenant_of("ann", "ipv4:10.0.0.7:1") != tenant_of("bob", "ipv4:10.0.0.7:1")
    assert tenant_of("host 10.0.0.7", "") != tenant_of("", "ipv4:10.0.0.7:1")


def test_a_name_is_bounded() -> None:
    with pytest.raises(RequestError, match="at most 256"):
        tenant_of("x" * 257, "ipv4:10.0.0.7:1")
