"""Rights on an Apache Kafka, taken from everybody and given back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

TOPIC, GROUP = 2, 3
READ, WRITE, DESCRIBE = 3, 4, 8
_LITERAL, _DENY, _ANYBODY, _ANYWHERE = 3, 2, "User:ANONYMOUS", "*"
# Once there is a rule about something, what no rule allows is forbidden.
_ALLOW, _ALL = 3, 2


@asynccontextmanager
async def forbidden(kafka: str, kind: int, name: str, operation: int) -> AsyncIterator[None]:
    """Forbid this during the block, and allow everything else."""
    rules = [
        (kind, name, _LITERAL, _ANYBODY, _ANYWHERE, _ALL, _ALLOW),
        (kind, name, _LITERAL, _ANYBODY, _ANYWHERE, operation, _DENY),
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        for rule in rules:
            response = await admin._send_request(CreateAclsRequest(*rule))
            assert not any(code for code, *_ in response.creation_responses), response
        yield
    finally:
        for rule in reversed(rules):
            await admin._send_request(DeleteAclsRequest(*rule))
        await admin.close()
