"""Checkpoints whose linear layers are stored as integers and scales: GPTQ, AWQ and compressed-tensors, read without their libraries."""
