"""How pytest-xdist spreads the suite over three workers: by modules, slow ones first, and some tests alone."""

from __future__ import annotations

import fcntl
import importlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.support.apache_kafka import ApacheKafkaMissing, fetch

# One more than the cores that the suite is made for: tests wait much, for servers that start and clients that notice.
_WORKERS = 3
# What takes long and waits much comes first, so that the workers come to their ends together. While tests/chaos is
# played, Apache Kafka is fetched for tests/kafka.
_FIRST = ("chaos", "kafka", "e2e", "integration", "surface", "property", "supervision", "unit")
# A test that runs alone waits for those of all other workers, who wait for it, too: so it comes when tests are short.
_SHORT_FROM = "supervision"
# One worker has all of these, so that one Apache Kafka serves them.
_ONE_UNIT = "tests/kafka/"
_LOCKS = pytest.StashKey[str]()
_LOCKS_INPUT = "bcs_locks"


class ByModule(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """A worker gets whole modules, since their tests share servers, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return _ONE_UNIT if nodeid.startswith(_ONE_UNIT) else nodeid.partition("::")[0]


def workers_for(config: pytest.Config) -> int:
    """Three for the whole suite or for several directories; for anything smaller their start would cost more."""
    chosen = [Path(str(argument).partition("::")[0]) for argument in config.args]
    return _WORKERS if len([path for path in chosen if path.is_dir()]) > 1 else 0


def prepare(config: pytest.Config) -> None:
    """Begin to fetch what workers will need, unless a former run did, so that no worker waits a minute for it."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        threading.Thread(target=_fetch_apache_kafka, daemon=True).start()


def _fetch_apache_kafka() -> None:
    # Where it can't be had, the tests that need it say so.
    with suppress(ApacheKafkaMissing):
        fetch()


def share_compiling(config: pytest.Config) -> None:
    """Import the tests of a worker, each worker beginning at another module.

    A fresh copy has no compiled modules, and to compile them takes longer than all else before the first test. Begun at
    the same one, all workers would compile all of them.
    """
    about: dict[str, Any] | None = getattr(config, "workerinput", None)
    if about is None:
        return
    chosen = (config.rootpath / argument for argument in config.args if "::" not in argument)
    files = [file for path in chosen if path.is_dir() for file in sorted(path.rglob("test_*.py"))]
    begin = len(files) * int(about["workerid"].removeprefix("gw")) // about["workercount"]
    for file in (*files[begin:], *files[:begin]):
        # What can't be imported is told by the collection.
        with suppress(Exception):
            importlib.import_module(".".join(file.relative_to(config.rootpath).with_suffix("").parts))


def order(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the directories into the order in which workers should begin them."""
    if hasattr(config, "workerinput"):
        alone = {item.path for item in items if item.get_closest_marker("serial")}
        items.sort(key=lambda item: _FIRST.index(_SHORT_FROM) if item.path in alone else _rank(item.path))


def _rank(path: Path) -> int:
    return next((rank for rank, name in enumerate(_FIRST) if name in path.parts), len(_FIRST))


def share_locks(node: WorkerController) -> None:
    """Give a worker the directory of the locks that the workers share; it is gone after the run."""
    config = node.config
    if _LOCKS not in config.stash:
        directory = tempfile.TemporaryDirectory(prefix="bcs-tests-")
        config.stash[_LOCKS] = directory.name
        config.add_cleanup(directory.cleanup)
    node.workerinput[_LOCKS_INPUT] = config.stash[_LOCKS]


@contextmanager
def alone_or_beside_others(item: pytest.Item) -> Iterator[None]:
    """Run a test marked `serial` while no other worker runs one, and any other test beside those of other workers."""
    locks = getattr(item.config, "workerinput", {}).get(_LOCKS_INPUT)
    if locks is None:
        yield
        return
    how = fcntl.LOCK_EX if item.get_closest_marker("serial") else fcntl.LOCK_SH
    with (Path(locks) / "queue").open("wb") as queue, (Path(locks) / "running").open("wb") as running:
        # Who waits to run alone keeps the queue; otherwise the others would overtake it again and again.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(running, how)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


def make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    """The scheduler of a run."""
    config.option.loadscopereorder = False  # it would begin with the modules that have the most tests
    return ByModule(config, log)
