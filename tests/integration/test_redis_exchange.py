"""A round trip returns each command's reply, however the replies arrive."""

from __future__ import annotations

import pytest
from redis.exceptions import ResponseError

from bcs.errors import StoreUnavailable
from tests.integration.stores import MakeGateway
from tests.support.fault_proxy import FaultProxy

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("piece_bytes", [1, 3, 64, 65_536])
async def test_replies_are_complete_and_in_order_in_pieces_of_any_length(
    make_gateway: MakeGateway, proxy: FaultProxy, redis_key_prefix: str, piece_bytes: int
) -> None:
    proxy.cut_replies_into_pieces(piece_bytes)
    gateway = make_gateway(proxy.address, deadline=5)
    key = f"{redis_key_prefix}exchange"
    async with gateway.session() as session:
        replies = await session.exchange(
            [
                ("SET", key, b"\r\n" * 50),
                ("GET", key),
                ("LPUSH", key, "of another type"),
                ("GET", f"{key}:missing"),
                ("MULTI",),
                ("STRLEN", key),
                ("GET", key),
                ("EXEC",),
            ]
        )
        refused = replies.pop(2)
        assert replies == [b"OK", b"\r\n" * 50, None, b"OK", b"QUEUED", b"QUEUED", [100, b"\r\n" * 50]]
        assert isinstance(refused, ResponseError)
        assert str(refused).startswith("WRONGTYPE")
        assert await session.call(("ECHO", "next")) == [b"next"]


async def test_a_refusal_in_the_middle_leaves_no_reply_to_the_next_round_trip(
    make_gateway: MakeGateway, proxy: FaultProxy
) -> None:
    gateway = make_gateway(proxy.address, deadline=5, connections=1)
    said = b"$26\r\nabcdefghijklmnopqrstuvwxyz\r\n"
    proxy.edit_replies({said: b"-LOADING ".ljust(len(said) - 2, b".") + b"\r\n"})
    with pytest.raises(StoreUnavailable, match="LOADING"):
        async with gateway.session() as session:
            # What is refused of a command stands among the replies; this is about the connection.
            await session.exchange([("ECHO", "first"), ("ECHO", "abcdefghijklmnopqrstuvwxyz"), ("ECHO", "last")])
    assert await gateway.call(("ECHO", "next")) == [b"next"]
