"""What connections to several servers of one URL share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bcs.config.secrets import Secret
from bcs.config.store_urls import StoreUrl, redis_url
from bcs.storage.redis.connecting import connection_pool
from tests.support.certificates import Authority


def context_of(url: StoreUrl) -> Any:
    """The TLS context of a new connection."""
    connection = connection_pool(url).make_connection()  # type: ignore[no-untyped-call]
    return connection._connection_arguments()["ssl"]


def test_all_servers_of_a_url_share_the_tls_context_until_a_file_changes(tmp_path: Path) -> None:
    """It takes 20 ms to make one, in which the event loop stands still."""
    ca = Authority(tmp_path).certificate
    text = f"rediss+sentinel://u:p@a:1,b:2/main?ssl_ca_certs={ca}"
    url = redis_url(text, sentinel_password=Secret("s"))
    first = context_of(url.at("a", 1))
    assert context_of(url.at("b", 2)) is context_of(url.at_sentinel("a", 1)) is first
    assert context_of(redis_url(text).at("a", 1)) is not first
    Authority(tmp_path)
    second = context_of(url.at_sentinel("b", 2))
    assert second is not first
    assert context_of(url.at("a", 1)) is second
