"""`bcs serve` that goes wrong at a named point when it is told to.

An order is a file, which is gone once the order was carried out. Where there is none, nothing goes wrong.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel

from bcs.config.loading import load_settings
from bcs.config.pipelines import pipelines_of
from bcs.observability.failpoints import FailPoint, fail_points
from bcs.observability.logs import configure_logging
from bcs.runtime.process import run_until_signalled
from bcs.runtime.tree import Service
from tests.support.service import BcsProcess

_VARIABLE = "CRASH_ORDERS"
# Several intervals between two commits: an offset that does not wait for what is held up here is committed by then.
_LINGER_SECONDS = 0.1


class OrderedCrash(Exception):
    """What no code here foresees."""


class How(StrEnum):
    """What goes wrong."""

    RAISE = "raised"  # the code raises there
    KILL = "killed"  # an actor is killed there
    DIE = "kill -9"  # the process dies there


@dataclass(frozen=True)
class Order:
    """Where to go wrong, and how.

    :param subject: whom the point has to be about.
    :param victim: the path of the actor to kill.
    :param times: at so many visits one after another.
    """

    point: FailPoint
    subject: str
    how: How
    victim: str = ""
    times: int = 1

    def give(self, file: Path) -> None:
        """Put it where the process looks, all at once."""
        draft = file.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self)))
        draft.rename(file)


class CrashingProcess(BcsProcess):
    """The other side: starts such a process.

    :param orders: the file.
    :param environment: as for `BcsProcess`.
    """

    def __init__(self, directory: Path, orders: Path, **environment: object) -> None:
        super().__init__(directory, program=serve, **{_VARIABLE: orders, **environment})


class Crasher:
    """Carries out what the file says, inside of the process."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._service: Service | None = None

    async def meet(self, service: Service, _stop: Callable[[], bool]) -> None:
        """The service has started."""
        self._service = service

    async def reach(self, point: FailPoint, subject: str) -> None:
        """See `bcs.observability.failpoints.FailPointHook`."""
        order = self._order()
        if order is None or (order.point, order.subject) != (point, subject):
            return
        if order.how is How.KILL and not (self._service and self._service.root.kill(order.victim)):
            return  # it is being killed already: at the next visit
        self._carried_out(order)
        if order.how is How.DIE:
            # For commits of offsets that should have waited: see there.
            await anyio.sleep(_LINGER_SECONDS)
            os.kill(os.getpid(), signal.SIGKILL)
        if order.how is How.RAISE:
            raise OrderedCrash(f"{point} of {subject}")
        # Here, unless a shield stands around this: then the death waits until it is out of there.
        await anyio.lowlevel.checkpoint()

    def _order(self) -> Order | None:
        if not self._file.exists():
            return None
        said = json.loads(self._file.read_text())
        return Order(**{**said, "point": FailPoint(said["point"]), "how": How(said["how"])})

    def _carried_out(self, order: Order) -> None:
        if order.times > 1:
            replace(order, times=order.times - 1).give(self._file)
        else:
            self._file.unlink()


def serve() -> None:
    """Serve until signalled, or crashed."""
    settings = load_settings()
    configure_logging(settings)
    crasher = Crasher(Path(os.environ[_VARIABLE]))
    serving = partial(
        run_until_signalled, settings, pipelines_of(settings), reloads_on_hangup=True, alongside=crasher.meet
    )
    with fail_points(crasher.reach):
        sys.exit(anyio.run(serving, backend_options={"use_uvloop": True}))
