"""Apache Kafka itself, fetched by Maven: one broker that is its own controller (KRaft), on the loopback interface."""

import base64
import fcntl
import functools
import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from pathlib import Path

from bcs.devtools.servers.embedded import HOST, EmbeddedServer, free_port
from tests.support.secured_kafka import SecuredKafka

VERSION = "4.1.1"
_JAVA_AT_LEAST = 17
_FETCH_SECONDS = 600
_FORMAT_SECONDS = 60
_ARCHIVE_SECONDS = 60
_CLASSES = "classes.jsa"
_TAIL_CHARACTERS = 2000
_PROBE_SECONDS = 1.0
# Without a binding for slf4j the broker would say nothing at all, not even why it does not start.
_POM = f"""\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId>
  <artifactId>apache-kafka</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""
_JVM_OPTIONS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)
# What a cluster of one takes, and what makes groups and restarts quick.
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "300",
    "broker.session.timeout.ms": "3000",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "500",
    "log.cleaner.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "offsets.topic.num.partitions": "2",
    "offsets.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
}


class ApacheKafkaMissing(Exception):
    """Apache Kafka can't run here; the text says why."""


def fetch() -> Path:
    """The folder with Apache Kafka's jars, downloaded unless an earlier run did that; safe to call concurrently.

    :raises ApacheKafkaMissing: where there is no Java, no Maven, or nowhere to fetch from.
    """
    _java()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batch-conductor-service-tests"
    jars = cache / f"apache-kafka-{VERSION}-{hashlib.sha256(_POM.encode()).hexdigest()[:8]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not jars.is_dir():
            # Renamed at the end: a run that is interrupted leaves nothing that looks complete.
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                _download(Path(directory)).rename(jars)
                _archive_classes(jars)
    return jars


def _archive_classes(jars: Path) -> None:
    """Keep the classes as the JVM has them once they are loaded: with those, a start takes half the time.

    An archive that is missing, or from another JVM, changes nothing but that.
    """
    with tempfile.TemporaryDirectory() as directory:
        server = apache_kafka(jars, Path(directory), jvm_options=(f"-XX:ArchiveClassesAtExit={jars / _CLASSES}",))
        with server:
            server.stop(_ARCHIVE_SECONDS)


def _download(directory: Path) -> Path:
    maven = shutil.which("mvn")
    if maven is None:
        raise ApacheKafkaMissing("no mvn to fetch Apache Kafka with")
    pom, jars = directory / "pom.xml", directory / "jars"
    pom.write_text(_POM)
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ApacheKafkaMissing(f"mvn did not fetch Apache Kafka within {_FETCH_SECONDS} s") from None
    if done.returncode or not any(jars.glob("kafka_*.jar")):
        raise ApacheKafkaMissing(f"mvn could not fetch Apache Kafka: {(done.stdout + done.stderr)[-_TAIL_CHARACTERS:]}")
    return jars


@functools.cache
def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    if java is None:
        raise ApacheKafkaMissing(f"no Java to run Apache Kafka, which takes {_JAVA_AT_LEAST} or later")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < _JAVA_AT_LEAST:
        raise ApacheKafkaMissing(f"Apache Kafka takes Java {_JAVA_AT_LEAST} or later, here is: {said.strip()[:100]!r}")
    return java


def apache_kafka(
    jars: Path,
    directory: Path,
    port: int | None = None,
    *,
    advertised_port: int | None = None,
    jvm_options: tuple[str, ...] | None = None,
    secured: SecuredKafka | None = None,
    **properties: object,
) -> EmbeddedServer:
    """An Apache Kafka broker, not started yet; what it acknowledged outlives it, even a kill -9.

    :param jars: from :func:`fetch`.
    :param advertised_port: for a proxy in front of it.
    :param jvm_options: besides the usual ones.
    :param secured: for listeners that want TLS and logins, beside the plain one.
    :param properties: of the broker, with underscores for dots: ``message_max_bytes=200_000``.
    """
    directory = directory.resolve()
    if jvm_options is None:
        jvm_options = (f"-XX:SharedArchiveFile={jars / _CLASSES}",)
    run = [_java(), *_JVM_OPTIONS, "-cp", f"{jars}/*"]
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    configuration, data = directory / "server.properties", directory / "data"
    more = secured.listeners if secured else {}
    asked_for = dict(secured.properties) if secured else {}
    asked_for |= {name.replace("_", "."): str(value) for name, value in properties.items()}

    more_listeners = [f"{name}://{HOST}:{port}" for name, (_, port) in more.items()]

    def command(port: int) -> list[str]:
        # The controller has a port that nobody else needs to know: another one at each start.
        controller = f"{HOST}:{free_port()}"
        addresses = {
            "listeners": ",".join([f"PLAINTEXT://{HOST}:{port}", f"CONTROLLER://{controller}", *more_listeners]),
            "advertised.listeners": ",".join([f"PLAINTEXT://{HOST}:{advertised_port or port}", *more_listeners]),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
            + "".join(f",{name}:{protocol}" for name, (protocol, _) in more.items()),
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(data),
        }
        lines = [f"{name}={value}\n" for name, value in {**_PROPERTIES, **addresses, **asked_for}.items()]
        configuration.write_text("".join(lines))
        if not (data / "meta.properties").exists():
            tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}", "--config", str(configuration)]
            tool += secured.scram if secured else ()
            subprocess.run([*run, *tool], check=True, capture_output=True, timeout=_FORMAT_SECONDS)
        return [run[0], *jvm_options, *run[1:], "kafka.Kafka", str(configuration)]

    return EmbeddedServer("apache-kafka", directory, port, command, lambda port, _: _is_ready(port, cluster_id))


def _is_ready(port: int, cluster_id: str) -> bool:
    # Metadata v2 for no topics tells the cluster id, which no other program's broker on this port has, and the brokers
    # that are in service. Kafka drops the answer when the request's end of the connection is closed before.
    request = struct.pack(">hhihi", 3, 2, 1, -1, 0)
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_SECONDS) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as answers:
                answer = answers.read(int.from_bytes(answers.read(4)))
    except OSError:
        return False
    brokers = int.from_bytes(answer[4:8])  # behind the correlation id
    return brokers == 1 and cluster_id.encode() in answer
