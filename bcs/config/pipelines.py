"""Reads the pipeline definitions from YAML, in BCS's format and in the platform's; writes BCS's format."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bcs.config.settings import InvalidSettings, Settings
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import PHASE_NAME, Phase, Pipeline, PipelineDefinitions
from bcs.errors import ConfigurationError, DependenciesDiffer, DuplicateName, UnreadableConfiguration, os_reason


def _as_written(version: object) -> object:
    # YAML reads 7 and 2026-11-29 without quotes as a number and a date. A number such as 1.10 has lost a digit.
    if isinstance(version, float):
        raise ValueError("write it in quotes, because 1.10 as a number is 1.1")  # noqa: TRY004 (pydantic's way)
    return str(version) if type(version) in (int, date) else version


# Phase names become parts of keys, labels and file names.
Name = Annotated[str, Field(pattern=f"^{PHASE_NAME}$")]


# A version becomes a label of a metric, and a part of a header.
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/+-]{0,63}$"), BeforeValidator(_as_written)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Phase(_Strict):
    name: Name
    requires: list[Name] = []
    needs_prompt: bool = False
    rerun_with_dependencies: bool = False
    # Not strict, because YAML has no enumerations.
    complete_when: Annotated[CompleteWhen, Field(strict=False)] = CompleteWhen.EVERY_ESSAY_COMPLETED
    rerun_when_changed: bool = False
    revision: Version | None = None


class _Pipeline(_Strict):
    name: Name
    pipelines: list[Name] = []
    phases: Annotated[list[Name], Field(min_length=1)] = []

    @model_validator(mode="after")
    def _has_members(self) -> Self:
        if not self.phases and not self.pipelines:
            raise ValueError("it must list `phases` or `pipelines`")
        return self


class _File(_Strict):
    version: Version | None = None
    phases: Annotated[list[_Phase], Field(min_length=1)]
    pipelines: list[_Pipeline] = []


MOST_DRAFT_PHASES = 32

_FewNames = Annotated[list[Name], Field(max_length=MOST_DRAFT_PHASES, fail_fast=True)]


class DraftPhase(_Phase):
    """A phase in a request."""

    requires: _FewNames = []


def _without_default(schema: dict[str, Any]) -> None:
    """An empty list is what a file has that leaves the list out, and no list that a file may have."""
    del schema["default"]


class DraftPipeline(_Pipeline):
    """A pipeline in a request: it lists `phases` or `pipelines`, or both."""

    pipelines: _FewNames = []
    phases: Annotated[_FewNames, Field(min_length=1, json_schema_extra=_without_default)] = []


class DraftFile(_Strict):
    """Definitions in a request, in the format of the pipeline file, of limited size."""

    version: Version | None = None
    phases: Annotated[list[DraftPhase], Field(min_length=1, max_length=MOST_DRAFT_PHASES, fail_fast=True)]
    pipelines: Annotated[list[DraftPipeline], Field(max_length=MOST_DRAFT_PHASES, fail_fast=True)] = []

    def definitions(self) -> PipelineDefinitions:
        """The definitions of the draft.

        :raises ConfigurationError: the draft contradicts itself.
        """
        return _definitions(self)


class _PlatformStep(_Strict):
    """A step of the platform's file. BCS calls no service, so it needs the name and the dependencies only."""

    name: Name
    depends_on: list[Name] = []
    service_name: str | None = None
    event_type: str | None = None
    event_data_model: str | None = None


class _PlatformPipeline(_Strict):
    description: str | None = None
    steps: Annotated[list[_PlatformStep], Field(min_length=1)]


class _PlatformFile(_Strict):
    pipelines: Annotated[dict[Name, _PlatformPipeline], Field(min_length=1)]


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice; in PyYAML's own loader the later key replaces the earlier one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            repeated = next(name for position, name in enumerate(names) if name in names[:position])
            raise DuplicateName(str(repeated), f"the mapping at line {node.start_mark.line + 1}")
        return mapping


def load_pipelines(path: Path | None) -> PipelineDefinitions:
    """The pipeline definitions in a file, in BCS's format or in the platform's.

    :param path: the file; None for the definitions that are part of BCS.
    :raises ConfigurationError: the file can't be read, or contradicts itself; the text names the phases.
    """
    try:
        text = _shipped() if path is None else path.read_text(encoding="utf-8")
        document = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
        if not isinstance(document, dict):
            raise UnreadableConfiguration(str(path), "file: it must be a mapping with `phases`")
        if "phases" not in document and isinstance(document.get("pipelines"), dict):
            return _platform_definitions(_PlatformFile.model_validate(document))
        return _definitions(_File.model_validate(document))
    except OSError as error:
        raise UnreadableConfiguration(str(path), os_reason(error)) from None
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise UnreadableConfiguration(str(path), *problems) from None
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        # PyYAML also raises errors of Python's own constructors.
        raise UnreadableConfiguration(str(path), " ".join(str(error).split())) from None


def pipelines_yaml(definitions: PipelineDefinitions) -> str:
    """The definitions in BCS's format; default values are left out."""
    phases = [
        _Phase.model_validate(
            {
                "name": phase.name,
                "requires": list(phase.requires),
                "needs_prompt": phase.needs_prompt,
                "rerun_with_dependencies": phase.rerun_with_dependencies,
                "complete_when": phase.complete_when,
                "rerun_when_changed": phase.rerun_when_changed,
                "revision": phase.revision,
            }
        )
        for phase in definitions.phases.values()
    ]
    pipelines = [
        _Pipeline(name=one.name, pipelines=list(one.pipelines), **({"phases": list(one.phases)} if one.phases else {}))
        for one in definitions.pipelines.values()
    ]
    document = _File(version=definitions.identity.version, phases=phases, pipelines=pipelines).model_dump(
        mode="json", exclude_defaults=True
    )
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
    return text


def _definitions(file: _File | DraftFile) -> PipelineDefinitions:
    return PipelineDefinitions(
        (
            Phase(
                phase.name,
                tuple(phase.requires),
                phase.needs_prompt,
                phase.rerun_with_dependencies,
                phase.complete_when,
                rerun_when_changed=phase.rerun_when_changed,
                revision=phase.revision,
            )
            for phase in file.phases
        ),
        (Pipeline(one.name, tuple(one.phases), tuple(one.pipelines)) for one in file.pipelines),
        version=file.version,
    )


def _platform_definitions(file: _PlatformFile) -> PipelineDefinitions:
    """The phases and pipelines of the platform's file.

    The platform decides in code, and not in this file, which phases need a prompt; BCS takes this from its own
    definitions.
    """
    first_seen: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name, pipeline in file.pipelines.items():
        steps = [step.name for step in pipeline.steps]
        if twice := _repeated(steps):
            raise DuplicateName(twice, f"the steps of pipeline {name!r}")
        for step in pipeline.steps:
            current = (name, tuple(step.depends_on))
            first = first_seen.setdefault(step.name, current)
            if set(first[1]) != set(current[1]):
                raise DependenciesDiffer(step.name, first, current)
    shipped = load_pipelines(None).phases
    phases = PipelineDefinitions(
        Phase(name, requires, needs_prompt=name in shipped and shipped[name].needs_prompt)
        for name, (_, requires) in first_seen.items()
    )
    pipelines = [
        Pipeline(name, tuple(step.name for step in pipeline.steps)) for name, pipeline in file.pipelines.items()
    ]
    # A phase is a pipeline of its own name already, so an equal pipeline is left out.
    return PipelineDefinitions(phases.phases.values(), [one for one in pipelines if not _equals_phase(phases, one)])


def _equals_phase(phases: PipelineDefinitions, pipeline: Pipeline) -> bool:
    return pipeline.name in phases.phases and {phase.name for phase in phases.plan(pipeline.name)} == set(
        pipeline.phases
    )


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def pipelines_of(settings: Settings) -> PipelineDefinitions:
    """The pipeline definitions of the settings.

    :raises InvalidSettings: with the error of `load_pipelines`, and the name of the variable.
    """
    path = settings.pipeline_config_path
    try:
        return load_pipelines(path)
    except UnreadableConfiguration as error:
        raise InvalidSettings((("BCS_PIPELINE_CONFIG_PATH", str(error)),)) from None
    except ConfigurationError as error:
        raise InvalidSettings((("BCS_PIPELINE_CONFIG_PATH", f"{path}: {error}"),)) from None


def _shipped() -> str:
    packaged = resources.files("bcs") / "config" / "pipelines.yaml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    # In an editable install or a checkout, the file is not in the package.
    return (Path(__file__).parents[2] / "config" / "pipelines.yaml").read_text(encoding="utf-8")
