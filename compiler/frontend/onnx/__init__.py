"""ONNX models: `import_onnx` for the compiler, `export_onnx` for the torch program, `unsupported_ops` for `llmos check`."""

from llmos.compiler.frontend.onnx.graph import Problem
from llmos.compiler.frontend.onnx.importer import OnnxProgram, export_onnx, import_onnx, unsupported_ops

__all__ = ["OnnxProgram", "Problem", "export_onnx", "import_onnx", "unsupported_ops"]
