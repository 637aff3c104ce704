"""Settings of the export."""

from __future__ import annotations

from dataclasses import dataclass

from hawq.components import component


@component("export/packed")
@dataclass(frozen=True)
class PackedExport:
    """Writes the packed file; there is nothing to choose."""
