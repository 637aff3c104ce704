"""Quantised networks as files."""

from hawq.export.onnx import export_onnx
from hawq.export.packed import PackedExport, load, packed_overhead, read_about, save

__all__ = ["PackedExport", "export_onnx", "load", "packed_overhead", "read_about", "save"]
