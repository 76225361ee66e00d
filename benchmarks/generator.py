"""Requests from a process of its own: as many at a time as there are connections, each the next one upon an answer.

``python -m benchmarks.generator``, with an `Order` as JSON on its standard input; says a `Load` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, cycle
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.measured import percentiles_ms

_PLACE, _UNIQUE = b"{number:12}", b"{unique:12}"
_SHORTEST_HEAD = 12
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Order:
    """What to ask, of whom, for how long.

    :param body: of every request; without one it is a GET.
    :param numbers: where it is not 0, the digits go through so many, beginning with 0, and then again.
    :param path: where it or the body has "{number:12}", that becomes twelve digits that no other request has. Where
        numbers repeat, "{unique:12}" behind it becomes such digits.
    :param once: end when the digits would begin again.
    :param token: of the caller; empty for none.
    """

    port: int
    body: str
    connections: int
    seconds: float
    numbers: int = 0
    path: str = "/internal/v1/pipelines/define"
    once: bool = False
    token: str = ""


@dataclass
class Load:
    """What came of it.

    :param percentiles_ms: of the time to an answer.
    :param cpu_seconds: of the generator itself: near the seconds it took, it is what limits the rate.
    """

    answers: int = 0
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    percentiles_ms: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


def generate(order: Order) -> Load:
    """Ask in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.generator"]
    said = subprocess.run(  # noqa: S603 (our own module)
        command,
        input=json.dumps(asdict(order)).encode(),
        stdout=subprocess.PIPE,
        check=True,
        cwd=_ROOT,
        timeout=order.seconds + _PATIENCE_SECONDS,
    ).stdout
    return Load(**json.loads(said))


_ROOT = Path(__file__).parents[1]


class _Run:
    """The state that all connections share."""

    def __init__(self, order: Order) -> None:
        head = f"{'POST' if order.body else 'GET'} {order.path} HTTP/1.1\r\nHost: bcs\r\n"
        if order.token:
            head += f"Authorization: Bearer {order.token}\r\n"
        if order.body:
            length = len(order.body.replace("{number:12}", "0" * 12).replace("{unique:12}", "0" * 12).encode())
            head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n"
        self._before, place, after = f"{head}\r\n{order.body}".encode().partition(_PLACE)
        self._after, unique, self._end = after.partition(_UNIQUE)
        self._numbered = bool(place)
        # Not twice the same, also over several runs.
        self._unique = count(time.time_ns() // 1000 % 10**11) if unique else None
        self._numbers: Iterator[int] = count(time.time_ns() // 1000 % 10**11)
        if order.numbers:
            self._numbers = iter(range(order.numbers)) if order.once else cycle(range(order.numbers))
        self.until = time.perf_counter() + order.seconds
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()
        self.open = order.connections
        self.done = asyncio.get_running_loop().create_future()

    def request(self) -> bytes | None:
        """The next one; None when there are no more."""
        if not self._numbered:
            return self._before
        number = next(self._numbers, None)
        if number is None:
            return None
        if self._unique is None:
            return b"%s%012d%s" % (self._before, number, self._after)
        return b"%s%012d%s%012d%s" % (self._before, number, self._after, next(self._unique), self._end)


class _Caller(asyncio.Protocol):
    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self._began = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from it
        self._ask()

    def _ask(self) -> None:
        request = self._run.request()
        self._began = time.perf_counter()
        if self._transport and request:
            self._transport.write(request)
        elif self._transport:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        now = time.perf_counter()
        self._run.latencies.append(now - self._began)
        self._run.statuses[head[9:_SHORTEST_HEAD].decode()] += 1
        if now < self._run.until:
            self._ask()
        elif self._transport:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.open -= 1
        if not self._run.open and not self._run.done.done():
            self._run.done.set_result(None)


async def _main() -> None:
    order = Order(**json.load(sys.stdin))
    run = _Run(order)
    loop = asyncio.get_running_loop()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(order.connections):
        await loop.create_connection(lambda: _Caller(run), "127.0.0.1", order.port)
    await run.done
    seconds = time.perf_counter() - began
    percentiles = percentiles_ms(run.latencies)
    load = Load(len(run.latencies), seconds, dict(run.statuses), percentiles, time.process_time() - cpu)
    json.dump(asdict(load), sys.stdout)


if __name__ == "__main__":
    uvloop.run(_main())
