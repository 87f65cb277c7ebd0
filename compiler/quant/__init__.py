"""Quantization as a user asks for it."""
