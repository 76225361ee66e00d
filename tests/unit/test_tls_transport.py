"""The transport between TLS and a connection: back-pressure is that of the socket, which alone knows what was sent."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from bcs.http.tls import TlsTransport


class Wire(asyncio.Transport):
    """A transport that notes what it is told, and has sent all but seven bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.told.append((high, low))

    def get_write_buffer_size(self) -> int:
        return 7

    def pause_reading(self) -> None:
        self.told.append("pause_reading")

    def resume_reading(self) -> None:
        self.told.append("resume_reading")


class Protocol(asyncio.Protocol):
    """Notes what its transport tells it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pause_writing(self) -> None:
        self.told.append("pause_writing")

    def resume_writing(self) -> None:
        self.told.append("resume_writing")


def test_back_pressure_passes_in_both_directions() -> None:
    wire, protocol = Wire(), Protocol()
    transport = TlsTransport(protocol, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    transport.connection_made(wire)
    transport.set_write_buffer_limits(0)
    transport.pause_reading()
    transport.resume_reading()
    assert wire.told == [(0, None), "pause_reading", "resume_reading"]
    assert transport.get_write_buffer_size() == 7
    transport.pause_writing()
    transport.resume_writing()
    assert protocol.told == ["pause_writing", "resume_writing"]
