"""Quantised networks as files."""

from hawq.export.packed import PackedExport
from hawq.export.reader import load, read_about
from hawq.export.schema import PACKED_SCHEMA
from hawq.export.writer import packed_overhead, save

__all__ = ["PACKED_SCHEMA", "PackedExport", "load", "packed_overhead", "read_about", "save"]
