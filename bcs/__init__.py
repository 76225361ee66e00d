"""The Batch Conductor Service: which phases of a pipeline does a batch of essays still need?"""

from importlib.metadata import version

# pyproject.toml has the version.
__version__ = version("batch-conductor-service")
