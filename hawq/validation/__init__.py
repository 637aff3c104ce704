"""What quantising one block alone truly costs on held-out images, and how well each score predicts it."""

from typing import Any

from hawq.records import ACTIVATIONS, WEIGHTS, Correlation, LossIncrease, LossIncreases, Score, Validated
from hawq.validation.correlation import correlate
from hawq.validation.scores import (
    PLAIN_ERROR,
    activation_scores,
    curvature_score,
    gradient_seconds,
    table_score,
)
from hawq.validation.settings import Validation

__all__ = [
    "ACTIVATIONS",
    "PLAIN_ERROR",
    "WEIGHTS",
    "Correlation",
    "LossIncrease",
    "LossIncreases",
    "Score",
    "Validated",
    "Validation",
    "activation_scores",
    "correlate",
    "curvature_score",
    "gradient_seconds",
    "loss_increases",
    "table_score",
]


def __getattr__(name: str) -> Any:
    """`loss_increases` is loaded when it is asked for: it alone needs PyTorch."""
    if name != "loss_increases":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hawq.validation.increases import loss_increases

    return loss_increases
