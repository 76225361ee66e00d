"""Rights on an Apache Kafka, given by the lines of docs/operations.md."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

_PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
_OPERATIONS = {"Read": 3, "Write": 4, "Delete": 6, "Describe": 8, "DescribeConfigs": 10}
_RESOURCES = {"--topic": 2, "--group": 3}
_LITERAL, _ALLOW, _ANYWHERE = 3, 3, "*"
Rule = tuple[int, str, int, str, str, int, int]


def documented_rights(of: str, principal: str, group: str) -> list[Rule]:
    """The rules that the page names.

    :param of: `the service` or `an operator`.
    :param group: the consumer group in the place of the page's.
    """
    lines = re.search(rf"<!-- kafka acls of {of}: begin -->\n```\n(.*?)```\n<!-- end -->", _PAGE.read_text(), re.DOTALL)
    assert lines is not None
    rules: list[Rule] = []
    for line in lines[1].replace("bcs-event-consumer", group).splitlines():
        words = shlex.split(line)
        pairs = list(zip(words[::2], words[1::2], strict=True))
        operations = [_OPERATIONS[value] for option, value in pairs if option == "--operation"]
        resources = [(_RESOURCES[option], value) for option, value in pairs if option != "--operation"]
        assert operations, line
        rules += [
            (kind, name, _LITERAL, f"User:{principal}", _ANYWHERE, operation, _ALLOW)
            for kind, name in resources
            for operation in operations
        ]
    return rules


@asynccontextmanager
async def granted(kafka: str, rules: Iterable[Rule]) -> AsyncIterator[None]:
    """Give these rights during the block.

    :param kafka: where everything is allowed.
    """
    rules = list(rules)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        for response in await asyncio.gather(*(admin._send_request(CreateAclsRequest(*rule)) for rule in rules)):
            assert not any(code for code, *_ in response.creation_responses), response
        yield
    finally:
        await asyncio.gather(*(admin._send_request(DeleteAclsRequest(*rule)) for rule in rules))
        await admin.close()
