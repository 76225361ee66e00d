"""No secret is shown: settings, errors, log, metrics, /healthz, commands, crashes. For a new secret, add a `Case`."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import structlog
from structlog.tracebacks import ExceptionDictTransformer

from bcs.config.loading import load_settings
from bcs.config.secrets import Secret
from bcs.config.settings import InvalidSettings, Settings
from bcs.devtools.servers.embedded import free_port
from bcs.domain.law import CompletionLaw
from bcs.errors import StoreUnavailable
from bcs.observability.failpoints import FailPoint
from bcs.ops.doctor.archive_checks import check_archive
from bcs.ops.doctor.kafka_checks import check_kafka
from bcs.ops.doctor.redis_checks import check_redis
from bcs.storage import factory
from bcs.storage.postgres.opening import open_archive
from bcs.storage.redis.gateway import RedisGateway
from tests.support.commands import Ran, bcs
from tests.support.service import Orchestrator, running_service, serve
from tests.support.tiers import IN_FULL
from tests.support.waiting import wait_until

pytestmark = pytest.mark.anyio

# Each secret begins and ends with one of these words, so that halves of it are found, too.
WORDS = ("zq7", "xk4")
REDIS, PASSWORD, USERNAME = "BCS_REDIS_URL", "BCS_REDIS_PASSWORD", "BCS_REDIS_USERNAME"
DATABASE, DATABASE_PASSWORD = "BCS_DATABASE_URL", "BCS_DATABASE_PASSWORD"


@dataclass(frozen=True)
class Case:
    """Variables with secrets in them; `{redis}`, `{database}` and `{kafka}` stand for a server's host and port.

    :param valid: whether BCS starts with them.
    :param plain: variables that are no secrets.
    """

    variables: Mapping[str, str]
    valid: bool = True
    plain: Mapping[str, str] = field(default_factory=dict)


CASES = {
    "user and password": Case({REDIS: "redis://zq7uxk4:zq7pxk4@{redis}/0"}),
    "password alone": Case({REDIS: "redis://:zq7pxk4@{redis}"}),
    "percent-encoded": Case({REDIS: "redis://zq7%C3%BCxk4:zq7%2F%40%20xk4@{redis}/0"}),
    "over TLS": Case({REDIS: "rediss://zq7uxk4:zq7pxk4@127.0.0.1:1?ssl_cert_reqs=none"}),
    "over a socket": Case({REDIS: "unix://zq7uxk4:zq7pxk4@/nowhere/redis.sock"}),
    "beside the URL": Case({REDIS: "redis://{redis}", USERNAME: "zq7uxk4", PASSWORD: "zq7 /@#%?xk4"}),
    "a user in the URL": Case({REDIS: "redis://zq7uxk4@{redis}", PASSWORD: "zq7pxk4"}),
    "a cluster": Case({REDIS: "redis+cluster://zq7uxk4:zq7%2Fxk4@{redis}"}),
    "a cluster, beside the URL": Case({REDIS: "redis+cluster://{redis}", USERNAME: "zq7uxk4", PASSWORD: "zq7 /@xk4"}),
    "Sentinels": Case(
        {
            REDIS: "redis+sentinel://zq7uxk4:zq7pxk4@{redis}/main",
            "BCS_REDIS_SENTINEL_USERNAME": "zq7sxk4",
            "BCS_REDIS_SENTINEL_PASSWORD": "zq7 /@xk4",
        }
    ),
    "a port that is none in a list": Case({REDIS: "redis+cluster://zq7uxk4:zq7pxk4@host:1,host:zq7xk4"}, valid=False),
    "a database": Case({DATABASE: "postgresql://zq7uxk4:zq7pxk4@{database}/postgres"}),
    "a database, percent-encoded": Case({DATABASE: "postgresql://zq7%C3%BCxk4:zq7%2F%40%20xk4@{database}/postgres"}),
    "a database, by options": Case({DATABASE: "postgresql://{database}/postgres?user=zq7uxk4&password=zq7pxk4"}),
    "a database, beside the URL": Case(
        {DATABASE: "postgresql://zq7uxk4@{database}/postgres", DATABASE_PASSWORD: "zq7 /@#%?xk4"}
    ),
    "a database over a socket": Case({DATABASE: "postgresql://zq7uxk4:zq7pxk4@/postgres?host=/nowhere"}),
    "the password of a key": Case({DATABASE: "postgresql://zq7uxk4@{database}/postgres?sslpassword=zq7pxk4"}),
    "twice": Case({REDIS: "redis://zq7uxk4:zq7pxk4@{redis}", PASSWORD: "zq7pxk4"}, valid=False),
    "a database twice": Case(
        {DATABASE: "postgresql://zq7uxk4:zq7pxk4@{database}/db", DATABASE_PASSWORD: "zq7pxk4"}, valid=False
    ),
    "an unknown scheme": Case({REDIS: "http://zq7uxk4:zq7pxk4@{redis}"}, valid=False),
    "an open slash": Case({REDIS: "redis://:zq7/xk4@{redis}"}, valid=False),
    "an open hash": Case({DATABASE: "postgresql://zq7uxk4:zq7#xk4@{database}/db"}, valid=False),
    "an open at": Case({DATABASE: "postgresql://zq7uxk4:zq7@xk4@{database}/db"}, valid=False),
    "an open bracket": Case({REDIS: "redis://zq7uxk4:zq7[xk4@{redis}"}, valid=False),
    "a port that is none": Case({REDIS: "redis://zq7uxk4:zq7pxk4@host:zq7xk4"}, valid=False),
    "an option that is none": Case({REDIS: "rediss://{redis}?ssl_password=zq7pxk4&ssl_zq7xk4=1"}, valid=False),
    "a value that is none": Case({DATABASE: "postgresql://{database}/db?password=zq7pxk4&sslmode=zq7xk4"}, valid=False),
    "no key": Case({REDIS: "rediss://{redis}?ssl_keyfile=/nowhere&ssl_certfile=/no&ssl_password=zq7pxk4"}, valid=False),
    "bytes that are no text": Case({REDIS: "redis://zq7\udcffxk4@{redis}"}, valid=False),
}
SASL = {
    "BCS_KAFKA_BOOTSTRAP_SERVERS": "{kafka}",
    "BCS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "BCS_KAFKA_SASL_USERNAME": "bcs",
}
OAUTH = {**SASL, "BCS_KAFKA_SASL_MECHANISM": "OAUTHBEARER", "BCS_KAFKA_OAUTH_CLIENT_ID": "bcs"}
OAUTH = {**OAUTH, "BCS_KAFKA_OAUTH_TOKEN_URL": "http://127.0.0.1:1/token"}
del OAUTH["BCS_KAFKA_SASL_USERNAME"]
PASSWORD_OF_KAFKA, SECRET_OF_CLIENT = "BCS_KAFKA_SASL_PASSWORD", "BCS_KAFKA_OAUTH_CLIENT_SECRET"
CASES |= {
    "Kafka, PLAIN": Case({PASSWORD_OF_KAFKA: "zq7 /@xk4"}, plain={**SASL, "BCS_KAFKA_SASL_MECHANISM": "PLAIN"}),
    "Kafka, SCRAM": Case({PASSWORD_OF_KAFKA: "zq7 /@xk4"}, plain={**SASL, "BCS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512"}),
    "Kafka, OAuth": Case({SECRET_OF_CLIENT: "zq7 /@xk4"}, plain=OAUTH),
    "Kafka, contradiction": Case(
        {PASSWORD_OF_KAFKA: "zq7 /@xk4", SECRET_OF_CLIENT: "zq7pxk4"}, valid=False, plain=OAUTH
    ),
    "a caller's token": Case({"BCS_TOKEN": "zq7pxk4-zq7pxk4-zq7pxk4-zq7pxk4-zq7pxk4"}),
}
SOURCES = ("variable", "file", "directory")
# Those that one service has together.
REFUSED = ("beside the URL", "a database, beside the URL", "a caller's token")
TOKEN, UNKNOWN_TOKEN = "zq7known-token-of-a-callerxk4", "zq7unknown-token-of-a-callerxk4"
CALLERS = f"callers: [{{name: somebody, scopes: [resolve, report, read, operate], tokens: [{TOKEN}]}}]"


@dataclass
class Seen:
    """All that was shown, and where."""

    texts: list[tuple[str, str]] = field(default_factory=list)

    def add(self, where: str, *shown: object) -> None:
        """Note what was shown."""
        self.texts += [(where, str(each)) for each in shown]

    def add_error(self, where: str, error: BaseException) -> None:
        """Note an error with its traceback, as the log and as Python itself show them."""
        self.add(where, error, repr(error), "".join(traceback.format_exception(error)))
        transform = ExceptionDictTransformer(show_locals=False)
        self.add(where, transform((type(error), error, error.__traceback__)))

    def add_log(self, records: list[logging.LogRecord]) -> None:
        """Note the records of the log."""
        for record in records:
            self.add("log", record.getMessage(), {name: each for name, each in vars(record).items() if name != "args"})
            if record.exc_info and record.exc_info[1]:
                self.add_error("log", record.exc_info[1])

    def show_no_secret(self) -> None:
        """Search everything."""
        found = [(where, text) for where, text in self.texts if any(word in text.lower() for word in WORDS)]
        assert not found, found[0]


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Iterator[Seen]:
    """What is shown in a test; all of it is searched at the end."""
    made = Seen()
    with caplog.at_level(logging.DEBUG):
        yield made
    made.add_log(caplog.get_records("call"))
    made.show_no_secret()


def variables_of(case: Case, source: str, directory: Path, servers: Mapping[str, str]) -> dict[str, str]:
    """The environment with the secrets of a case: themselves, or in files.

    :param directory: where files go.
    """
    environment = {variable: text.format(**servers) for variable, text in case.plain.items()}
    for variable, template in case.variables.items():
        text = template.format(**servers)
        path = directory / variable
        if source == "variable":
            environment[variable] = text
        else:
            path.write_bytes(text.encode(errors="surrogateescape"))
            environment |= {f"{variable}_FILE": str(path)} if source == "file" else {"BCS_SECRETS_DIR": str(directory)}
    return environment


@pytest.fixture
def servers(redis_url: str, postgres_url: str, module_kafka: str) -> dict[str, str]:
    """Servers that refuse all logins of the cases, or at least know no such user."""
    redis, database = (urlsplit(url).netloc.rpartition("@")[2] for url in (redis_url, postgres_url))
    return {"redis": redis, "database": database, "kafka": module_kafka}


@pytest.fixture
def clean_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path is free of the names of cases."""
    return tmp_path_factory.mktemp("files")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", CASES)
async def test_no_setting_and_no_store_shows_a_secret(
    name: str,
    source: str,
    clean_directory: Path,
    servers: dict[str, str],
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = CASES[name]
    for variable, text in variables_of(case, source, clean_directory, servers).items():
        monkeypatch.setenv(variable, text)
    settings: Settings | None
    try:
        settings = load_settings(redis_deadline_seconds=1.0, database_deadline_seconds=1.0)
    except InvalidSettings as error:
        seen.add_error("settings", error)
        settings = None
    assert (settings is not None) == case.valid
    if settings is None:
        return
    seen.add("settings", repr(settings), settings, settings.model_dump(), settings.model_dump_json())
    seen.add("settings", settings.redis, vars(settings.redis), settings.database)
    if "BCS_KAFKA_SECURITY_PROTOCOL" in case.plain:
        seen.add("doctor", *await check_kafka(settings, None))
    else:
        await look_at_stores(settings, seen)


async def look_at_stores(settings: Settings, seen: Seen) -> None:
    """Note all that is shown of stores that refuse."""
    nodes = factory.redis_nodes(settings)
    seen.add("nodes", vars(nodes))
    if isinstance(nodes, RedisGateway):
        seen.add("gateway", nodes._pool, vars(nodes._pool))
        if nodes.sentinels:
            seen.add("sentinels", vars(nodes.sentinels), *map(vars, nodes.sentinels._sentinels))
    node = nodes.at("key")
    for ask in (nodes.ping, lambda: node.call(("PING",)), lambda: node.call_multiplexed(("PING",))):
        try:
            await ask()
        except StoreUnavailable as error:
            seen.add_error("redis", error)
            seen.add("redis", error.cause, error.address)
    seen.add("problem", nodes.problem, nodes.address)
    await nodes.aclose()
    seen.add("doctor", *await check_redis(settings), *await check_archive(settings))
    if settings.database_url is not None:
        archive = open_archive(settings)
        with pytest.raises(StoreUnavailable) as raised:
            await archive.probe(1.0)
        # The chain of causes has the texts of the client, which names the user. Nobody logs it.
        seen.add("archive", raised.value, repr(raised.value), archive.problem, archive.address)
        await archive.aclose()


@pytest.fixture
def refused(clean_directory: Path, servers: dict[str, str]) -> dict[str, str]:
    """The environment of a service whose secrets both stores refuse."""
    together = {variable: text for name in REFUSED for variable, text in CASES[name].variables.items()}
    return variables_of(Case(together), "directory", clean_directory, servers)


async def test_no_service_and_no_command_shows_a_secret(
    refused: dict[str, str], clean_directory: Path, tmp_path: Path, module_kafka: str, seen: Seen
) -> None:
    clean_directory.joinpath("BCS_REDIS_PASSWD").write_text("zq7pxk4")
    tmp_path.joinpath("callers.yaml").write_text(CALLERS)
    more: dict[str, Any] = {
        "BCS_ENVIRONMENT": "production",
        "BCS_LOG_LEVEL": "DEBUG",
        "BCS_CHAOS_ENABLED": "true",
        "BCS_HTTP_ACCESS_LOG": "true",
        "BCS_DATABASE_FIRST_PROBE_SECONDS": 0.2,
        "BCS_REDIS_URL": "",
        "BCS_HTTP_TOKENS_FILE": tmp_path / "callers.yaml",
    }
    path = "/internal/v1"
    with serve(tmp_path, "", module_kafka, forked=True, **{**more, **refused}) as process:
        await process.answers("/healthz")
        async with Orchestrator(process.base, token=UNKNOWN_TOKEN) as stranger:
            for answer in (await stranger.define("b"), await stranger.get(f"{path}/actors")):
                assert answer.status == 401
                seen.add("refusal", answer.headers, answer.body.decode())
        async with Orchestrator(process.base, token=TOKEN) as caller:

            async def both_are_named() -> bool:
                found = (await caller.get("/healthz")).json["dependencies"]
                return PASSWORD in found["redis"]["message"] and "DATABASE" in found["postgresql"]["message"]

            await wait_until(both_are_named)
            for route in (
                "/healthz",
                "/readyz",
                "/metrics",
                f"{path}/actors",
                f"{path}/batches/b",
                f"{path}/pipelines",
            ):
                answer = await caller.get(route)
                seen.add(route, answer.headers, answer.body.decode())
            for answer in (await caller.define("b"), await caller.complete("b", "nlp")):
                seen.add("answer", answer.headers, answer.body.decode())
            for actor in ("metrics", "publisher", "archive", "intake", "batches"):
                assert (await caller.request("POST", f"{path}/actors/{actor}/kill")).status == 202
        await commands_show_no_secret({**process.environment, **refused, "BCS_HTTP_PORT": free_port()}, seen)
    seen.add("output", process.output.read_text(), process.log.read_text())
    for event in ("archive_unreachable", "redis_probe_failed", "unknown_secret_file"):
        assert event in process.log.read_text()


async def commands_show_no_secret(environment: Mapping[str, object], seen: Seen) -> None:
    """Run the commands that use a store, all at once."""
    commands = ["doctor", "batches show b"]
    if IN_FULL:
        commands += ["doctor --json", "batches history b", "resolve b ai_feedback", "db upgrade", "dlq list"]
        commands += ["intake history"]
    ran: dict[str, Ran] = {}

    async def run(command: str) -> None:
        ran[command] = await bcs(*command.split(), **environment)

    async with anyio.create_task_group() as group:
        for command in commands:
            group.start_soon(run, command)
    for command, result in ran.items():
        seen.add(command, result.output, result.error)
    assert ran["doctor"].exit_code == 1
    for said in ("password of BCS_REDIS_USERNAME and BCS_REDIS_PASSWORD", "BCS_REDIS_PASSWD", "BCS_DATABASE_PASSWORD"):
        assert said in ran["doctor"].output


async def test_no_crash_shows_a_secret(
    refused: dict[str, str], seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable, text in refused.items():
        monkeypatch.setenv(variable, text)
    crashed: set[str] = set()

    async def crash(point: FailPoint, subject: str) -> None:
        if point is FailPoint.STARTING and subject not in crashed:
            crashed.add(subject)
            raise RuntimeError(f"crash of {subject}")

    kafka = "127.0.0.1:1"
    async with running_service(crash, kafka_bootstrap_servers=kafka, database_first_probe_seconds=0.1) as service:
        assert {"metrics", "publisher", "archive", "intake", "http"} <= crashed
        seen.add("tree", service.snapshot())
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) >= len(crashed)
    # A start that fails for a reason that nobody expected.
    monkeypatch.setattr(factory, "RedisStateStore", None)
    with pytest.raises(TypeError) as raised:
        factory.open_persistence(load_settings(), law=CompletionLaw({}))
    seen.add_error("start", raised.value)


def test_the_search_finds_a_secret() -> None:
    for shown in (
        Secret("zq7p").get_secret_value(),
        "half of it: 4xk4",
        structlog.dev.plain_traceback.__name__ + "ZQ7",
    ):
        seen = Seen()
        seen.add("somewhere", shown)
        with pytest.raises(AssertionError, match="somewhere"):
            seen.show_no_secret()
