"""From a model to an artifact: `compile` in memory, `compile_to_file` on disk."""

from llmos.compiler.driver.compile import Artifact, CompileResult, compile, compile_to_file
from llmos.compiler.driver.importing import ModelWarning

__all__ = ["Artifact", "CompileResult", "ModelWarning", "compile", "compile_to_file"]
