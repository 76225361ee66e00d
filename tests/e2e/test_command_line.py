"""The command line itself: help, completion, pipelines, wrong usage, and how little a health check loads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest

from bcs import __version__
from bcs.devtools.servers.embedded import free_port
from bcs.domain.pipelines import Phase
from tests.support.commands import bcs, bcs_at_terminal, command_environment, installed_bcs, installed_bcs_at_terminal
from tests.support.forked import ForkedProcess
from tests.support.service import serve

pytestmark = pytest.mark.anyio

COMMANDS = [
    ("batches",),
    ("batches", "show"),
    ("batches", "history"),
    ("batches", "erase"),
    ("resolve",),
    ("explain",),
    ("plan",),
    ("pipelines",),
    ("pipelines", "list"),
    ("pipelines", "show"),
    ("pipelines", "validate"),
    ("pipelines", "diff"),
    ("pipelines", "reload"),
    ("pipelines", "graph"),
    ("pipelines", "convert"),
    ("actors",),
    ("events",),
    ("events", "sample"),
    ("events", "schema"),
    ("events", "send"),
    ("events", "tail"),
    ("db",),
    ("db", "upgrade"),
    ("db", "rebuild"),
    ("doctor",),
]
READING = [
    command
    for command in COMMANDS
    if len(command) == 2 or command[0] in ("resolve", "explain", "plan", "actors", "doctor")
]
# What these print is text for another program.
TEXT_ONLY = [("pipelines", "graph"), ("pipelines", "convert"), ("events", "sample"), ("events", "schema")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pipelines.yaml"


@pytest.fixture
def defined(file: Path) -> Path:
    """A file of two phases and a pipeline."""
    file.write_text(DEFINITIONS)
    return file


@pytest.fixture
def platforms(file: Path) -> Path:
    """A file in the form of the platform."""
    file.write_text("pipelines: {p: {description: d, steps: [{name: a}, {name: b, depends_on: [a]}]}}")
    return file


@pytest.fixture
def broken(file: Path, request: pytest.FixtureRequest) -> Path:
    """A file with the parameter's text."""
    file.write_text(request.param)
    return file


# --- help, completion, usage -----------------------------------------------------------------------------------------


async def test_help_names_every_command() -> None:
    ran = await bcs("--help")
    assert ran.exit_code == 0
    assert all(name in ran.output for name in ("serve", "healthcheck", *(command[0] for command in COMMANDS)))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_every_command_explains_itself_in_eighty_columns(command: tuple[str, ...]) -> None:
    ran = await bcs_at_terminal(80, *command, "--help")
    assert ran.exit_code == 0
    assert max(map(len, ran.uncoloured.splitlines())) <= 80
    assert "…" not in ran.uncoloured, "nothing is cut off"
    if command in READING and command not in TEXT_ONLY:
        assert "--json" in ran.uncoloured


async def test_the_first_line_of_help_says_what_a_command_does_to_others() -> None:
    ran = await bcs("--help")
    [resolve] = re.findall(r"resolve +(.*?)\s*│?$", ran.output, re.MULTILINE)
    assert "announce" in resolve


# At a commit those that import most and least. Each start takes a second of CPU.
AT_A_COMMIT = {"doctor", "pipelines"}
GROUPS = sorted({command[0] for command in COMMANDS} | {"dlq"})


@pytest.mark.parametrize(
    "group", [group if group in AT_A_COMMIT else pytest.param(group, marks=pytest.mark.release) for group in GROUPS]
)
async def test_the_installed_command_starts_into_a_pipe_and_at_a_terminal(group: str) -> None:
    """All other tests fork their commands from a process that has imported everything, whatever they need."""
    piped, shown = await installed_bcs(group, "--help"), await installed_bcs_at_terminal(80, group, "--help")
    assert (piped.exit_code, shown.exit_code) == (0, 0)
    assert f"Usage: bcs {group}" in piped.output
    assert f"Usage: bcs {group}" in shown.uncoloured


async def test_completion_is_there_for_bash_and_knows_the_commands() -> None:
    script = await bcs("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert script.exit_code == 0
    assert "_BCS_COMPLETE=complete_bash" in script.output
    assert (await completed("")) >= {"batches", "resolve", "pipelines", "actors", "db", "doctor", "serve"}
    assert (await completed("pipelines ")) == {"list", "show", "validate", "diff", "reload", "graph", "convert"}
    assert (await completed("resolve --of")) == {"--offline"}


async def completed(words: str) -> set[str]:
    line = f"bcs {words}"
    ran = await bcs(COMP_WORDS=line, COMP_CWORD=line.count(" "), _BCS_COMPLETE="complete_bash")
    return set(ran.output.split())


@pytest.mark.parametrize("arguments", [("no-such-command",), ("batches", "show"), ("actors", "--no-such-option")])
async def test_wrong_usage_exits_with_two(arguments: tuple[str, ...]) -> None:
    ran = await bcs(*arguments)
    assert (ran.exit_code, ran.output) == (2, "")
    assert ran.error


@pytest.mark.parametrize(
    "command", [("batches", "show", "b"), ("pipelines", "list"), ("resolve", "b", "nlp", "--offline")]
)
async def test_wrong_settings_exit_with_two_and_name_the_variable(command: tuple[str, ...]) -> None:
    ran = await bcs(*command, BCS_HTTP_PORT="http")
    assert (ran.exit_code, ran.output) == (2, "")
    assert "BCS_HTTP_PORT" in ran.error


def test_a_health_check_loads_no_client_and_no_rich() -> None:
    program = (
        "import sys, bcs.cli.main\n"
        "try: bcs.cli.main.cli(['healthcheck'])\n"
        "except SystemExit as end: print(end.code)\n"
        "print(*sorted(sys.modules), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"BCS_HTTP_PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=True,
    )
    exit_code, *modules = done.stdout.split()
    assert exit_code == "1"
    assert "bcs.config.settings" in modules
    assert not {"rich", "redis", "aiokafka", "aiohttp", "asyncpg", "alembic"} & set(modules)
    assert {name for name in modules if name.startswith("bcs.cli.")} == {"bcs.cli.main"}


async def test_the_version_is_an_option_and_a_command() -> None:
    for command in ("--version", "version"):
        ran = await bcs(command)
        assert (ran.exit_code, ran.output, ran.error) == (0, f"{__version__}\n", "")


async def test_a_command_uses_the_port_of_the_settings_and_no_proxy(tmp_path: Path) -> None:
    port, proxy = free_port(), f"http://127.0.0.1:{free_port()}"
    environment = {"BCS_HTTP_PORT": port, "http_proxy": proxy, "HTTP_PROXY": proxy}
    for command in (("actors",), ("resolve", "b", "nlp"), ("healthcheck",)):
        ran = await bcs(*command, **environment)
        assert (ran.exit_code, ran.output) == (1, "")
        assert "Connection refused" in ran.error
        assert command == ("healthcheck",) or f"http://127.0.0.1:{port}/" in ran.error
    misspelt = {"BCS_HTPP_PORT": 1}
    settings = {"BCS_USE_MOCK_REPOSITORY": "true", "BCS_HTTP_PORT": port, "BCS_HTTP_HOST": "127.0.0.1", **misspelt}
    nowhere = f"127.0.0.1:{free_port()}"
    with serve(tmp_path, f"redis://{nowhere}", nowhere, forked=True, **settings) as process:
        await process.answers("/healthz")
        for name in ("healthcheck", "actors"):
            assert (await bcs(name, **environment)).exit_code == 0
    assert "BCS_HTPP_PORT is not a setting of BCS, and has no effect; did you mean BCS_HTTP_PORT?" in (
        process.log.read_text()
    )
    ran = await bcs("actors", BCS_HTTP_PORT=0)
    assert (ran.exit_code, ran.output) == (2, "")
    assert "BCS_HTTP_PORT" in ran.error


def test_a_reader_that_goes_away_is_no_error() -> None:
    gone, pipe = os.pipe()
    os.close(gone)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "bcs", *arguments],
            env=command_environment({"PYTHONUNBUFFERED": unbuffered}),
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.PIPE,
        )
        for arguments, unbuffered in ((("pipelines", "list"), "1"), (("--help",), ""))
    ]
    os.close(pipe)
    ended = [(process.communicate(timeout=30)[1], process.returncode) for process in processes]
    assert ended == [(b"", 0)] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [("pipelines", "list"), ("pipelines", "list", "--json"), ("--help",)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
async def test_output_that_can_not_be_written_is_told_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], unbuffered: str
) -> None:
    error = tmp_path / "error"
    error.touch()
    environment = command_environment({"PYTHONUNBUFFERED": unbuffered})
    process = ForkedProcess(arguments, environment, stdin=Path(os.devnull), stdout=Path("/dev/full"), stderr=error)
    assert await anyio.to_thread.run_sync(process.wait, 30) == 1
    assert error.read_text() == "bcs: the output can't be written: No space left on device\n"


# --- pipelines -------------------------------------------------------------------------------------------------------

DEFINITIONS = """
phases:
  - name: first
  - {name: second, requires: [first], needs_prompt: true, rerun_with_dependencies: true}
pipelines:
  - {name: both, phases: [second, first]}
"""


async def test_what_is_defined_is_listed(defined: Path) -> None:
    ran = await bcs("pipelines", "list", BCS_PIPELINE_CONFIG_PATH=defined)
    assert [line.split(maxsplit=2) for line in ran.output.splitlines()[1:]] == [
        ["first", "phase", "first"],
        ["second", "phase", "first, second"],
        ["both", "pipeline", "first, second"],
    ]
    document = (await bcs("pipelines", "list", "--json", BCS_PIPELINE_CONFIG_PATH=defined)).json
    assert [pipeline["name"] for pipeline in document["pipelines"]] == ["first", "second", "both"]
    assert (
        document["pipelines"][2]
        == (await bcs("pipelines", "show", "both", "--json", BCS_PIPELINE_CONFIG_PATH=defined)).json
    )


async def test_a_pipeline_is_a_tree_in_the_order_in_which_it_runs(defined: Path) -> None:
    ran = await bcs("pipelines", "show", "both", BCS_PIPELINE_CONFIG_PATH=defined)
    assert ran.output.splitlines() == [
        "both: pipeline, 2 phases in order",
        "├── 1. first",
        "│   └── requires: nothing",
        "└── 2. second",
        "    ├── requires: first",
        "    ├── refused without a prompt",
        "    └── runs again when a phase that it requires runs again",
    ]
    document = (await bcs("pipelines", "show", "second", "--json", BCS_PIPELINE_CONFIG_PATH=defined)).json
    usual = {"complete_when": "every_essay_completed", "rerun_when_changed": False, "revision": None}
    assert [phase.pop("definition") for phase in document["phases"]] == [
        Phase("first").definition,
        Phase("second", ("first",)).definition,
    ]
    assert document["phases"] == [
        {"name": "first", "requires": [], "needs_prompt": False, "rerun_with_dependencies": False, **usual},
        {"name": "second", "requires": ["first"], "needs_prompt": True, "rerun_with_dependencies": True, **usual},
    ]


async def test_without_unicode_a_tree_has_other_lines_and_names_are_spelled_out(tmp_path: Path) -> None:
    ran = await bcs_at_terminal(200, "pipelines", "show", "nlp", PYTHONIOENCODING="ascii")
    assert ran.exit_code == 0
    assert ran.uncoloured.splitlines()[1] == "+-- 1. spellcheck"
    umlauts = copied(tmp_path / "größe.yaml")
    ran = await bcs_at_terminal(200, "pipelines", "validate", str(umlauts), PYTHONIOENCODING="ascii")
    assert ran.uncoloured.endswith("gr\\xf6\\xdfe.yaml: valid, 2 phases and 1 pipeline\n")


def copied(path: Path) -> Path:
    path.write_text(DEFINITIONS)
    return path


@pytest.mark.parametrize("command", [("show",), ("graph",)])
async def test_a_pipeline_that_is_not_there_is_told_in_one_line(command: tuple[str, ...]) -> None:
    ran = await bcs("pipelines", *command, "third")
    assert (ran.exit_code, ran.output) == (1, "")
    [line] = ran.error.splitlines()
    assert "comprehensive" in line


async def test_the_platforms_file_is_converted_to_one_that_is_read(platforms: Path) -> None:
    listed = await bcs("pipelines", "list", BCS_PIPELINE_CONFIG_PATH=platforms)
    converted = await bcs("pipelines", "convert", str(platforms))
    assert (converted.exit_code, converted.error) == (0, "")
    ours = ["phases:", "- {name: a}", "- name: b", "  requires: [a]", "pipelines:", "- name: p", "  phases: [a, b]"]
    assert converted.output.splitlines() == ours
    assert [line.split(maxsplit=2) for line in listed.output.splitlines()[1:]] == [
        ["a", "phase", "a"],
        ["b", "phase", "a, b"],
        ["p", "pipeline", "a, b"],
    ]


async def test_a_graph_of_all_phases_or_of_one_pipeline() -> None:
    everything = await bcs("pipelines", "graph")
    assert everything.output.splitlines()[0] == "flowchart LR"
    assert "phase_spellcheck --> phase_nlp" in everything.output
    one = await bcs("pipelines", "graph", "ai_feedback", "--format", "dot")
    assert one.output.startswith("digraph phases {")
    assert '"spellcheck" -> "ai_feedback";' in one.output
    assert "nlp" not in one.output
    assert (await bcs("pipelines", "graph", "--format", "svg")).output.startswith("<svg ")
    assert (await bcs("pipelines", "graph", "--format", "png")).exit_code == 2


async def test_a_difference_is_told_and_exits_with_1(defined: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(f"version: 2\n{DEFINITIONS}  - {{name: all_of_it, pipelines: [both]}}")
    ran = await bcs("pipelines", "diff", str(other), BCS_PIPELINE_CONFIG_PATH=defined)
    first, *changes = ran.output.splitlines()
    assert (ran.exit_code, ran.error) == (1, "")
    assert changes == ["  version: 2, before none", "  pipeline all_of_it: added, runs first, second"]
    document = (await bcs("pipelines", "diff", str(other), "--json", BCS_PIPELINE_CONFIG_PATH=defined)).json
    assert document["pipelines_changed"] == [{"pipeline": "all_of_it", "before": None, "after": ["first", "second"]}]
    assert first == f"{other}: 2 {document['after']['hash']}, before {document['before']['hash']}"
    same = await bcs("pipelines", "diff", str(defined), BCS_PIPELINE_CONFIG_PATH=defined)
    assert (same.exit_code, same.output) == (0, f"{defined}: no difference, {document['before']['hash']}\n")


async def test_a_valid_file_is_said_to_be_valid(defined: Path) -> None:
    ran = await bcs("pipelines", "validate", str(defined))
    assert (ran.exit_code, ran.output) == (0, f"{defined}: valid, 2 phases and 1 pipeline\n")
    ran = await bcs("pipelines", "validate", str(defined), "--json")
    assert ran.json == {"file": str(defined), "valid": True, "problems": []}


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("phases: [{nme: a}, {name: B}]\nmore: 1", ["phases.0.name: ", "phases.0.nme: ", "phases.1.name: ", "more: "]),
        ("phases: [{name: a, requires: [b]}]", ["'a' names the phase 'b'"]),
        ("phases: [{name: a, requires: [b]}, {name: b, requires: [a]}]", ["cycle: "]),
        ("phases: [{name: a}, {name: a}]", ["'a' is defined twice in phases"]),
        ("phases: [", ["line 1"]),
        ("[]", ["must be a mapping"]),
    ],
    indirect=["broken"],
)
async def test_every_mistake_of_a_file_is_named_on_a_line_of_its_own(broken: Path, named: list[str]) -> None:
    ran = await bcs("pipelines", "validate", str(broken))
    assert (ran.exit_code, ran.error) == (1, "")
    heading, *problems = ran.output.splitlines()
    assert heading == f"{broken}: not valid"
    assert len(problems) == len(named)
    assert all(any(words in problem for problem in problems) for words in named)
    document = (await bcs("pipelines", "validate", str(broken), "--json")).json
    assert document["valid"] is False
    assert [f"  {problem}" for problem in document["problems"]] == problems


async def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.yaml", tmp_path):
        assert (await bcs("pipelines", "validate", str(path))).exit_code == 2
