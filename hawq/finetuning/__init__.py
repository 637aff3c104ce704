"""Ordered quantisation-aware fine-tuning."""

from hawq.finetuning.loop import RepeatedLoader, Row, TrainingCheckpoint, TrainingData, fit, learning_rate
from hawq.finetuning.ordered import finetune
from hawq.finetuning.schedule import ORDERS, Order, make_phases, tuning_order
from hawq.finetuning.settings import FineTuning, Training

__all__ = [
    "ORDERS",
    "FineTuning",
    "Order",
    "RepeatedLoader",
    "Row",
    "Training",
    "TrainingCheckpoint",
    "TrainingData",
    "finetune",
    "fit",
    "learning_rate",
    "make_phases",
    "tuning_order",
]
