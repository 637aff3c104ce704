"""Scores that are measured for each block and bit-width, beside those that follow from curvature."""

from hawq.scoring.asked import measure_score
from hawq.scoring.joint_training import JointTraining
from hawq.scoring.kl import kl_score
from hawq.scoring.learned_steps import learned_steps_score
from hawq.scoring.output_shift import output_shift_score
from hawq.scoring.quadratic import quadratic_score
from hawq.scoring.settings import TEST, TRAIN, Analysis
from hawq.scoring.work import Conditions

__all__ = [
    "TEST",
    "TRAIN",
    "Analysis",
    "Conditions",
    "JointTraining",
    "kl_score",
    "learned_steps_score",
    "measure_score",
    "output_shift_score",
    "quadratic_score",
]
