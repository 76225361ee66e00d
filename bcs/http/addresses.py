"""Which addresses belong to one caller, as far as an address can tell."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

_PREFIX_BITS = 64


@lru_cache(4096)
def network_of(address: str) -> str:
    """The network whose addresses count as one caller: an IPv4 address alone, an IPv6 address with its /64.

    A host with IPv6 may use all addresses of its /64.
    """
    if ":" not in address:
        return address
    address_6 = IPv6Address(address.partition("%")[0])  # the kernel adds the interface to a link-local address
    if address_6.ipv4_mapped is not None:
        return str(address_6.ipv4_mapped)
    return str(IPv6Network((int(address_6), _PREFIX_BITS), strict=False))
