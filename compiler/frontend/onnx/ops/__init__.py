"""ONNX ops as torch functions, in files by theme; `llmos.compiler.frontend.onnx.registry` collects them."""
