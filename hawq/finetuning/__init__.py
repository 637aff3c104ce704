"""Ordered quantisation-aware fine-tuning."""

from hawq.finetuning.data import RepeatedLoader, TrainingData
from hawq.finetuning.distillation import Distillation, soft_loss
from hawq.finetuning.loop import fit
from hawq.finetuning.ordered import finetune
from hawq.finetuning.run import Row
from hawq.finetuning.schedule import ORDERS, SCHEDULES, Order, learning_rate, make_phases, tuning_order
from hawq.finetuning.settings import FineTuning, Training
from hawq.finetuning.teachers import Ensemble, Renormalized

__all__ = [
    "ORDERS",
    "SCHEDULES",
    "Distillation",
    "Ensemble",
    "FineTuning",
    "Order",
    "Renormalized",
    "RepeatedLoader",
    "Row",
    "Training",
    "TrainingData",
    "finetune",
    "fit",
    "learning_rate",
    "make_phases",
    "soft_loss",
    "tuning_order",
]
