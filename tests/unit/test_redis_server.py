"""Decisions from a Redis server's INFO."""

from __future__ import annotations

import pytest

from bcs.storage.redis.server import cluster_problem, fields_of, identity_of, product_of, server_problem

RUN, DATA = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"redis_version": "6.0.16"}, "Redis 6.0.16 is older than 6.2"),
        ({"redis_version": "5.0.6"}, "Redis 5.0.6 is older than 6.2"),
        ({"redis_version": "2.8"}, "Redis 2.8 is older than 6.2"),
        ({"redis_version": "6.2.0"}, ""),
        ({"redis_version": "6.10.1"}, ""),
        ({"redis_version": "10.0.0"}, ""),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, ""),
        ({"redis_version": "unstable"}, ""),
        ({}, ""),
        ({"redis_version": "7.0.15", "role": "slave"}, "it is a replica, and BCS needs the master"),
        ({"redis_version": "7.0.15", "role": "master"}, ""),
        (
            {"redis_mode": "sentinel"},
            "it is a Sentinel: BCS_REDIS_URL must begin with redis+sentinel:// to find the Redis that it watches",
        ),
        (
            {"server_mode": "sentinel"},
            "it is a Sentinel: BCS_REDIS_URL must begin with redis+sentinel:// to find the Redis that it watches",
        ),
    ],
)
def test_what_can_not_be_used_is_named(info: dict[str, str], reason: str) -> None:
    assert server_problem(info) == reason


@pytest.mark.parametrize(
    ("size", "slots", "fit"), [("1", "16384", True), ("3", "16384", False), ("1", "8192", False), ("0", "0", False)]
)
def test_of_a_cluster_only_a_node_with_all_slots_can_be_used(size: str, slots: str, fit: bool) -> None:
    assert bool(cluster_problem({"cluster_size": size, "cluster_slots_assigned": slots})) is not fit
    assert cluster_problem({}), "it does not tell"


def test_an_identity_holds_the_ids_of_run_and_data_or_is_none() -> None:
    assert identity_of({"run_id": RUN, "master_replid": DATA}) == "01234567-fedcba98"
    assert identity_of({"run_id": RUN}) == identity_of({"master_replid": DATA}) == identity_of({}) == ""


def test_info_is_read_line_by_line() -> None:
    info = fields_of(b"# Server\r\nredis_version:7.2.4\r\nvalkey_version:9.1.2\r\nexecutable:/a:b\r\n")
    assert info == {"redis_version": "7.2.4", "valkey_version": "9.1.2", "executable": "/a:b"}
    assert product_of(info) == "Valkey 9.1.2"
    assert product_of({}) == "Redis of an unknown version"
