"""Reads the pipeline definitions from YAML."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bcs.domain.errors import ConfigurationError, DuplicateName, UnreadableConfiguration
from bcs.domain.law import CompleteWhen
from bcs.domain.pipelines import Phase, Pipeline, PipelineDefinitions
from bcs.settings import InvalidSettings, Settings

# Phase names become parts of keys, labels and file names.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Phase(_Strict):
    name: Name
    requires: list[Name] = []
    needs_prompt: bool = False
    rerun_with_dependencies: bool = False
    # Not strict, as YAML has no enumerations.
    complete_when: Annotated[CompleteWhen, Field(strict=False)] = CompleteWhen.EVERY_ESSAY_COMPLETED


class _Pipeline(_Strict):
    name: Name
    phases: Annotated[list[Name], Field(min_length=1)]


class _File(_Strict):
    phases: Annotated[list[_Phase], Field(min_length=1)]
    pipelines: list[_Pipeline] = []


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML lets a later key replace an earlier one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            names = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(name for position, name in enumerate(names) if name in names[:position])
            raise DuplicateName(str(twice), f"the mapping at line {node.start_mark.line + 1}")
        return mapping


def load_pipelines(path: Path | None) -> PipelineDefinitions:
    """The pipeline definitions in a file.

    :param path: none means the definitions that ship with BCS.
    :raises ConfigurationError: the file can't be read, or contradicts itself; the phases are named.
    """
    try:
        text = _shipped() if path is None else path.read_text(encoding="utf-8")
        document = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
        if not isinstance(document, dict):
            raise UnreadableConfiguration(str(path), "file: it must be a mapping with `phases`")
        file = _File.model_validate(document)
    except OSError as error:
        raise UnreadableConfiguration(str(path), error.strerror or str(error)) from None
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        )
        raise UnreadableConfiguration(str(path), *problems) from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        # PyYAML lets the errors of Python's own constructors through.
        raise UnreadableConfiguration(str(path), " ".join(str(error).split())) from None
    return PipelineDefinitions(
        (
            Phase(
                phase.name,
                tuple(phase.requires),
                phase.needs_prompt,
                phase.rerun_with_dependencies,
                phase.complete_when,
            )
            for phase in file.phases
        ),
        (Pipeline(pipeline.name, tuple(pipeline.phases)) for pipeline in file.pipelines),
    )


def pipelines_of(settings: Settings) -> PipelineDefinitions:
    """The pipelines that the settings name.

    :raises InvalidSettings: with everything that `load_pipelines` says, and the variable that led there.
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
    # An editable install or a checkout: the file is not copied into the package.
    return (Path(__file__).parent.parent / "config" / "pipelines.yaml").read_text(encoding="utf-8")
