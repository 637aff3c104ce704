"""Reconstruction of layers and blocks without training labels: rounding and steps that keep the outputs."""

from hawq.reconstruction.reconstructing import Row, reconstruct
from hawq.reconstruction.settings import (
    BRECQ,
    AdaRound,
    AutoReconstruction,
    Descent,
    NoReconstruction,
    QDrop,
    Reconstruction,
    Tuning,
)
from hawq.reconstruction.tuning import tune
from hawq.reconstruction.units import Unit, find_units

__all__ = [
    "BRECQ",
    "AdaRound",
    "AutoReconstruction",
    "Descent",
    "NoReconstruction",
    "QDrop",
    "Reconstruction",
    "Row",
    "Tuning",
    "Unit",
    "find_units",
    "reconstruct",
    "tune",
]
