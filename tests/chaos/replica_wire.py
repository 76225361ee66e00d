"""Understands what the members of a consumer group and their broker say to each other.

No log and no metric can be as right about who asked to commit what, when, and whether the broker took it; and it works
for processes, however they end.
"""

import struct
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any, get_args

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.protocol.commit import OffsetCommitRequestStruct
from aiokafka.protocol.fetch import FetchRequestStruct
from aiokafka.protocol.group import JoinGroupRequestStruct, LeaveGroupRequestStruct, SyncGroupRequestStruct

from tests.chaos.replica_ledger import Commit, GroupLedger, Partition

BeforeCommit = Callable[[int, dict[Partition, int]], Awaitable[None]]
_FETCH, _COMMIT, _JOIN, _LEAVE, _SYNC = 1, 8, 11, 13, 14
_APIS = (
    FetchRequestStruct,
    OffsetCommitRequestStruct,
    JoinGroupRequestStruct,
    LeaveGroupRequestStruct,
    SyncGroupRequestStruct,
)
_SPOKEN: dict[tuple[int, int], Any] = {(one.API_KEY, one.API_VERSION): one for api in _APIS for one in get_args(api)}
_MEMBERS = b"batch-conductor-service"  # the name of the clients that are replicas
_LENGTH = struct.Struct(">i")
_HEADER = struct.Struct(">hhih")  # key of the API, its version, correlation id, length of the client's name


class GroupConversation:
    """One client's connection to the broker, entered into the ledger as far as it is about the group.

    :param port: the client's.
    :param before_commit: called with the port and the offsets of every commit, before the broker gets it.
    """

    def __init__(self, ledger: GroupLedger, port: int, before_commit: BeforeCommit) -> None:
        self._ledger, self._port, self._before_commit = ledger, port, before_commit
        self._understand: dict[int, Callable[[BytesIO], None]] = {}
        self._requests, self._replies = _Frames(), _Frames()

    async def request(self, chunk: bytes) -> None:
        """See `Conversation.request`."""
        for frame in self._requests.of(chunk):
            await self._requested(frame)

    async def reply(self, chunk: bytes) -> None:
        """See `Conversation.reply`."""
        for frame in self._replies.of(chunk):
            answer = BytesIO(frame)
            [correlation_id] = _LENGTH.unpack(answer.read(_LENGTH.size))
            if understand := self._understand.pop(correlation_id, None):
                understand(answer)

    async def _requested(self, frame: bytes) -> None:
        key, version, correlation_id, name_length = _HEADER.unpack_from(frame)
        end = _HEADER.size + max(0, name_length)
        if frame[_HEADER.size : end] != _MEMBERS or key not in (_FETCH, _COMMIT, _JOIN, _LEAVE, _SYNC):
            return
        spoken = _SPOKEN[key, version]
        request = spoken.decode(frame[end:])
        if key == _FETCH:
            for topic in request.to_object()["topics"]:
                for one in topic["partitions"]:
                    offset = one["fetch_offset"] if "fetch_offset" in one else one["offset"]
                    self._ledger.reads(self._port, (topic["topic"], one["partition"]), offset)
        elif key == _COMMIT:
            offsets = {(topic, one[0]): one[1] for topic, partitions in request.topics for one in partitions}
            await self._before_commit(self._port, offsets)
            # Whose partitions these are counts at the moment at which the broker gets the request.
            generation = request.consumer_group_generation_id
            commit = self._ledger.asked(request.consumer_id, generation, self._port, offsets)
            self._understand[correlation_id] = lambda answer: _committed(commit, spoken.RESPONSE_TYPE.decode(answer))
        elif key == _SYNC:
            self._understand[correlation_id] = lambda answer: self._synced(request, spoken.RESPONSE_TYPE.decode(answer))
        else:
            self._ledger.given_up(request.member_id)

    def _synced(self, request: Any, answer: Any) -> None:
        if answer.error_code == 0:
            assignment: Any = ConsumerProtocolMemberAssignment.decode(answer.member_assignment)
            partitions = frozenset((topic, number) for topic, numbers in assignment.assignment for number in numbers)
            self._ledger.given(request.member_id, request.generation_id, self._port, partitions)


def _committed(commit: Commit, answer: Any) -> None:
    commit.taken = frozenset(
        (topic, number) for topic, partitions in answer.topics for number, error in partitions if error == 0
    )


class _Frames:
    """Puts messages together out of what a stream gives."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, chunk: bytes) -> list[bytes]:
        self._rest += chunk
        frames = []
        while len(self._rest) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._rest)[0]
            if len(self._rest) < end:
                break
            frames.append(self._rest[_LENGTH.size : end])
            self._rest = self._rest[end:]
        return frames
