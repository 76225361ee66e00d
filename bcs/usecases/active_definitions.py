"""The pipeline definitions in use, which a reload replaces as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import anyio
import anyio.to_thread
import structlog

from bcs.actors.runtime import Runtime
from bcs.config.settings import InvalidSettings, Settings
from bcs.domain.definitions_difference import Difference, difference
from bcs.domain.law import CompletionLaw
from bcs.domain.pipelines import PhaseNames, PipelineDefinitions
from bcs.errors import DefinitionsRefused
from bcs.observability.telemetry import REFUSED, RELOADED, UNCHANGED
from bcs.supervision import describe
from bcs.usecases.kept_resolutions import KeptResolutions

log = structlog.stdlib.get_logger("bcs.definitions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Definitions, and all that follows from them. A request takes this once, so that nothing in its answer is mixed.

    :param law: decides which phases are complete.
    :param resolutions: resolves under these definitions.
    :param phases: the phases that facts may be about.
    """

    definitions: PipelineDefinitions
    law: CompletionLaw
    resolutions: KeptResolutions
    phases: PhaseNames

    @classmethod
    def of(cls, definitions: PipelineDefinitions, settings: Settings) -> Rules:
        """The rules that follow from definitions and settings."""
        return cls(
            definitions=definitions,
            law=definitions.law(require_registration=settings.require_registration),
            resolutions=KeptResolutions(definitions),
            phases=PhaseNames(definitions.phases, keep_unknown=settings.keep_unknown_phases),
        )


class ActiveDefinitions:
    """Has the rules in use, and replaces them when an operator asks for it.

    :param definitions: the definitions at the start.
    :param load: reads the file again, and raises `ConfigurationError`. It may block.
    :ivar current: the rules in use. They are replaced as a whole.
    :ivar loaded_at: when they were read.
    :ivar problem: why the last reload was refused; empty if it was not.
    """

    def __init__(
        self,
        definitions: PipelineDefinitions,
        *,
        runtime: Runtime,
        load: Callable[[], PipelineDefinitions],
    ) -> None:
        self.problem = ""
        self._runtime = runtime
        self._load = load
        self._followers: list[Callable[[PhaseNames], None]] = []
        self._reloading = anyio.Lock()
        # A file system that never answers must not use up the threads, however often a reload is asked for.
        self._threads = anyio.CapacityLimiter(1)
        self._use(definitions)

    def follow(self, follower: Callable[[PhaseNames], None]) -> None:
        """Call a function with the phases of the definitions in use, now and after each reload."""
        self._followers.append(follower)
        follower(self.current.phases)

    async def reload(self, asked_by: str) -> Difference:
        """Read the file again, and use it from now on. Requests that have begun are answered under the old definitions.

        :param asked_by: who asked for it, for the log.
        :returns: the difference to the definitions that were in use.
        :raises DefinitionsRefused: the file is not valid, and the definitions in use stay in use.
        """
        async with self._reloading:
            try:
                # A file system that does not answer must hold up neither a stop nor the deadline of a request.
                definitions = await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True, limiter=self._threads)
            except Exception as error:  # noqa: BLE001 (whatever is in the file, the service goes on)
                raise self._refused(error, asked_by) from None
            found = difference(self.current.definitions, definitions)
            outcome = UNCHANGED if found.same_content and found.before == found.after else RELOADED
            self._use(definitions)
            self.problem = ""
            self._note(outcome)
            log.info(
                "definitions_reloaded",
                outcome=outcome,
                requested_by=asked_by,
                definitions=str(found.after),
                before=str(found.before),
                changes=list(found.sentences()),
            )
            return found

    def _use(self, definitions: PipelineDefinitions) -> None:
        self.current = Rules.of(definitions, self._runtime.settings)
        self.loaded_at = self._runtime.now()
        for follower in self._followers:
            follower(self.current.phases)
        # The old series has to go: each series with the value 1 would count as definitions in use.
        info, identity = self._runtime.telemetry.definitions_info, definitions.identity
        info.clear()
        info.labels(identity.version or "", identity.content_hash).set(1)

    def _refused(self, error: Exception, asked_by: str) -> DefinitionsRefused:
        if isinstance(error, InvalidSettings):
            problems = tuple(problem for _, problem in error.problems)
        else:
            problems = (describe(error),)
        self.problem = "; ".join(problems)
        self._note(REFUSED)
        log.error(
            "definitions_refused",
            requested_by=asked_by,
            problem=self.problem,
            in_use=str(self.current.definitions.identity),
        )
        return DefinitionsRefused(problems, str(self.current.definitions.identity))

    def _note(self, outcome: str) -> None:
        telemetry = self._runtime.telemetry
        telemetry.definitions_reloads.labels(outcome).inc()
        telemetry.definitions_outdated.set(bool(self.problem))
