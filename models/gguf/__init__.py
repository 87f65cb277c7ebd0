"""GGUF files: metadata and tensors, mapped; blocks of small integers as floats, or as integers with scales and minimums."""
