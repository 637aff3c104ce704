"""Reconstruction of layers and blocks without training labels: rounding and steps that keep the outputs."""
