"""Quantised networks as files."""

from hawq.export.overhead import packed_overhead
from hawq.export.packed import PackedExport
from hawq.export.reader import load, read_about
from hawq.export.schema import PACKED_SCHEMA
from hawq.export.writer import save

__all__ = ["PACKED_SCHEMA", "PackedExport", "load", "packed_overhead", "read_about", "save"]
