"""Passes that bring contractions to integer arithmetic (docs/quantization.md)."""
