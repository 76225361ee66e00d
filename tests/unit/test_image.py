"""The image is asked for its health by a command of its own: it has no curl."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from bcs.cli.main import HEALTH_SECONDS, cli

DOCKERFILE = (Path(__file__).parent.parent.parent / "Dockerfile").read_text()


def test_the_healthcheck_of_the_image_is_bcs_healthcheck_alone() -> None:
    [(options, command)] = re.findall(r"^HEALTHCHECK (.*?) CMD (.*)$", DOCKERFILE, re.MULTILINE)
    program, name = json.loads(command)
    assert program == json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)[0])[0]
    assert name in {str(known.callback.__name__) for known in cli.registered_commands if known.callback}
    given = dict(option.removeprefix("--").split("=") for option in shlex.split(options))
    assert float(given["timeout"].removesuffix("s")) > HEALTH_SECONDS
