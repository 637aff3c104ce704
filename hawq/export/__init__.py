"""Quantised networks as files."""

from hawq.export.onnx import export_onnx
from hawq.export.packed import PACKED_SCHEMA, PackedExport, load, packed_overhead, read_about, save

__all__ = ["PACKED_SCHEMA", "PackedExport", "export_onnx", "load", "packed_overhead", "read_about", "save"]
