"""The Batch Conductor Service: which phases of a pipeline does a batch of essays still need?"""

__version__ = "0.2.0"
