"""Passes over IR. One pass, one file, one kebab-case name, one test file; `_*.py` is the machinery (docs/passes.md)."""

from llmos.passes._context import CostModel, PassContext
from llmos.passes._manager import PassObserver, PassRun, PipelineOptions, PipelineReport, run_pipeline
from llmos.passes._pass import Pass
from llmos.passes._pipeline import parse_pipeline, pipeline_text
from llmos.passes._property import Property
from llmos.passes._registry import pass_class, pass_names
from llmos.passes._upstream import Upstream

__all__ = [
    "CostModel",
    "Pass",
    "PassContext",
    "PassObserver",
    "PassRun",
    "PipelineOptions",
    "PipelineReport",
    "Property",
    "Upstream",
    "parse_pipeline",
    "pass_class",
    "pass_names",
    "pipeline_text",
    "run_pipeline",
]
