"""Real servers for the suite: embedded ones, or those that BCS_TEST_* name."""

import gc
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import structlog
from hypothesis import settings
from xdist.remote import Producer
from xdist.workermanage import WorkerController

from bcs.devtools.servers import embedded
from bcs.devtools.servers.embedded import EmbeddedServer
from bcs.devtools.servers.postgres import PostgresServer, postgres
from tests.support import apache_kafka as apache
from tests.support.databases import database
from tests.support.distribution import (
    ByModule,
    alone_or_beside_others,
    make_scheduler,
    order,
    prepare,
    share_compiling,
    share_locks,
    workers_for,
)
from tests.support.kafka import platform_broker
from tests.support.pgbouncer import pgbouncer, pgbouncer_binary
from tests.support.redis_cluster import RedisCluster, running_cluster
from tests.support.secured_kafka import SecuredKafka
from tests.support.tiers import hear_from_worker, leave_out, show_not_played, tell_the_controller

# Logs go to pytest, which shows them with the test that failed.
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

# A machine that has much to do is no fault of what is tested: examples have no deadline.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

_JARS_IF_ANY = "apache_kafka_jars_if_any"  # a fixture of the chaos suite
_NO_APACHE_KAFKA = "no Apache Kafka: "
_BROKER = "broker"  # a user property, which reports carry from the workers to the process that shows them


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """See `workers_for`; `-n` on the command line stands above it."""
    return workers_for(config)


def pytest_sessionstart(session: pytest.Session) -> None:
    """See `prepare`."""
    prepare(session.config)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByModule:
    """See `ByModule`."""
    return make_scheduler(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Look for no garbage while tests are collected, and never again among what stays from then on to the end.

    Each worker would spend a third of the collection on that.
    """
    gc.disable()
    try:
        share_compiling(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """See `leave_out` and `order`."""
    leave_out(config, items)
    order(config, items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """See `tell_the_controller`."""
    tell_the_controller(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """See `hear_from_worker`."""
    hear_from_worker(node)


def pytest_configure_node(node: WorkerController) -> None:
    """See `share_locks`."""
    share_locks(node)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """See `alone_or_beside_others`."""
    with alone_or_beside_others(item):
        return (yield)


def pytest_runtest_call(item: pytest.Item) -> None:
    """Note the broker that a test runs on. Called after its fixtures, so not for a test that they skip."""
    fixtures = set(getattr(item, "fixturenames", ()))
    servers = os.environ.get("BCS_TEST_KAFKA_BOOTSTRAP_SERVERS")
    if servers and fixtures & {"kafka_bootstrap_servers", "shared_kafka"}:
        broker = f"the broker at {servers}"
    elif fixtures & {"apache_kafka_jars", "shared_kafka", "secured_apache_kafka"} or getattr(item, "funcargs", {}).get(
        _JARS_IF_ANY
    ):
        broker = f"Apache Kafka {apache.VERSION}"
    elif (
        fixtures & {"kafka_bootstrap_servers", "module_kafka", "private_kafka", _JARS_IF_ANY}
        or "chaos" in item.path.parts
    ):
        broker = "Tansu, embedded"
    else:
        return
    item.user_properties.append((_BROKER, broker))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say plainly which brokers were used, and what was not played."""
    show_not_played(terminalreporter, config)
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    ran = [report for report in reports if getattr(report, "when", None) == "call"]
    used = Counter(broker for report in ran for name, broker in report.user_properties if name == _BROKER)
    terminalreporter.section("Kafka brokers")
    for broker, tests in sorted(used.items()):
        terminalreporter.line(f"{broker}: {tests} tests")
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    reasons = Counter(text.partition(_NO_APACHE_KAFKA)[2] for text in skipped if _NO_APACHE_KAFKA in text)
    for reason, tests in reasons.items():
        terminalreporter.line(f"Apache Kafka: {tests} tests NOT RUN, {reason}")
    if not used and not reasons:
        terminalreporter.line("none")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The service runs on asyncio; only the supervision library is tested on both."""
    return "asyncio"


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store that all tests share: never flush it, write under ``redis_key_prefix``."""
    if url := os.environ.get("BCS_TEST_REDIS_URL"):
        yield url
        return
    with embedded.valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield f"redis://{server.address}/0"


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters that the tests of a worker share: never flush, kill or freeze one, and give back slots.

    Modules that do more have a `running_cluster` of their own.
    """
    with running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def module_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The broker that the tests of a module share, with the platform's topics; it starts in a twentieth of a second.

    The topics' names are fixed: on a broker that more modules share, a service would read everything that the tests
    before it sent, and make dead letters of their junk once more.
    """
    with platform_broker(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="module")
def kafka_bootstrap_servers(module_kafka: str) -> str:
    """The same, under the name of the setting."""
    return module_kafka


@pytest.fixture(scope="session")
def new_postgres(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], PostgresServer]:
    """Makes a PostgreSQL in a directory, not started yet, on a copy of files that are made once: that takes longest."""

    @cache
    def initialised() -> PostgresServer:
        with postgres(tmp_path_factory.mktemp("initialised"), durable=False) as server:
            return server

    def make(directory: Path) -> PostgresServer:
        server = initialised()
        # For `nobody` they lie elsewhere, and have an owner that a copy would not have: then they are made again.
        if server.data.is_relative_to(server.directory):
            shutil.copytree(server.data, directory / "data")
        return postgres(directory, durable=False)

    return make


@pytest.fixture(scope="session")
def postgres_url(
    new_postgres: Callable[[Path], PostgresServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The PostgreSQL that all tests share, with a user who may create databases: see ``database_url``."""
    if url := os.environ.get("BCS_TEST_DATABASE_URL"):
        yield url
        return
    with new_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """An empty database of this test's own; whoever is still connected at the end is thrown out."""
    with database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    """An empty database that the tests of a module share."""
    with database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def _postgres_of_the_module(
    new_postgres: Callable[[Path], PostgresServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PostgresServer]:
    with new_postgres(tmp_path_factory.mktemp("own-postgres")) as server:
        yield server


@pytest.fixture
def running_postgres(_postgres_of_the_module: PostgresServer) -> Iterator[PostgresServer]:
    """The module's own PostgreSQL, running whatever the test before did to it: a new one takes most of a second."""
    _postgres_of_the_module.thaw()
    _postgres_of_the_module.start()
    yield _postgres_of_the_module
    _postgres_of_the_module.thaw()  # before anything that the test has connected is closed


@pytest.fixture
def private_postgres(new_postgres: Callable[[Path], PostgresServer], tmp_path: Path) -> Iterator[PostgresServer]:
    """A PostgreSQL of this test's own, to be killed and frozen; what it committed survives that."""
    with new_postgres(tmp_path / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def pooler(postgres_url: str) -> Iterator[EmbeddedServer]:
    """A PgBouncer in transaction mode, in front of the PostgreSQL that all tests share."""
    binary = pgbouncer_binary()
    if binary is None:
        pytest.skip("no PgBouncer: the program `pgbouncer` is not installed")
    with pgbouncer(binary, postgres_url) as server:
        yield server


@pytest.fixture
def private_valkey(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A store of this test's own, to be killed and frozen; what it acknowledged survives that, as in production."""
    with embedded.valkey(tmp_path / "valkey", append_only=True) as server:
        yield server


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A broker of this test's own, to be killed and frozen; it forgets topics, messages and offsets when it ends."""
    with embedded.kafka(tmp_path / "kafka") as server:
        yield server


@pytest.fixture(scope="session")
def apache_kafka_jars() -> Path:
    """Apache Kafka itself; where it can't run, tests that need it are skipped."""
    try:
        return apache.fetch()
    except apache.ApacheKafkaMissing as missing:
        pytest.skip(f"{_NO_APACHE_KAFKA}{missing}")


@pytest.fixture(scope="session")
def shared_kafka(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a real broker that tests share and nobody may kill: Apache Kafka, or the one that is named."""
    if servers := os.environ.get("BCS_TEST_KAFKA_BOOTSTRAP_SERVERS"):
        yield servers
        return
    secured: SecuredKafka = request.getfixturevalue("secured_apache_kafka")
    yield secured.plain


@pytest.fixture(scope="session")
def secured_apache_kafka(apache_kafka_jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """The Apache Kafka that tests share, with its secured listeners; whoever comes by the plain one may do anything."""
    secured = SecuredKafka(tmp_path_factory.mktemp("certificates"))
    with apache.apache_kafka(apache_kafka_jars, tmp_path_factory.mktemp("apache-kafka"), secured=secured) as server:
        secured.plain = server.address
        yield secured


@pytest.fixture
def private_apache_kafka(apache_kafka_jars: Path, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One of this test's own, to be killed and frozen; what it acknowledged survives that."""
    with apache.apache_kafka(apache_kafka_jars, tmp_path / "apache-kafka") as server:
        yield server


@pytest.fixture
def unique_name() -> Callable[[str], str]:
    """Makes names for topics and groups that no other test and no earlier run uses."""
    return lambda prefix: f"{prefix}-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def topic_prefix(unique_name: Callable[[str], str]) -> str:
    """What this test's topics start with."""
    return f"{unique_name('test')}."


@pytest.fixture
def redis_key_prefix(unique_name: Callable[[str], str]) -> str:
    """The setting of the same name. Isolates by name alone, because a store from outside is not ours to flush."""
    return f"{unique_name('test')}:"


@pytest.fixture
def free_port() -> int:
    """A loopback port for a proxy or a server that the test starts itself."""
    return embedded.free_port()
