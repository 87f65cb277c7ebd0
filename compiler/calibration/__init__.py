"""Quantization fitted to data: what runs the model on calibration inputs, and decides by what it sees."""
