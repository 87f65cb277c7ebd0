"""ONNX models: `import_onnx` for the compiler, `export_onnx` for the torch program, `unsupported_ops` for `llmos check`."""

from llmos.compiler.frontend.onnx.graph import Problem
from llmos.compiler.frontend.onnx.importer import OnnxProgram, compile_time_inputs, export_onnx, import_onnx, unsupported_ops

__all__ = ["OnnxProgram", "Problem", "compile_time_inputs", "export_onnx", "import_onnx", "unsupported_ops"]
