"""HAWQ: Hessian-aware mixed-precision quantisation of vision networks (1905.03696, 1911.03852, 2011.10680)."""

from hawq.allocation import HawqV3, IntegerProgram, Manual, Monotone, UniformBits, allocate
from hawq.blocks import find_blocks
from hawq.curvature import Fisher, GradientNorm, Hutchinson, Lanczos, PowerIteration, RandomScore
from hawq.export import export_onnx, load, packed_overhead, save
from hawq.finetuning import FineTuning, finetune
from hawq.quantization import LSQ, Uniform, quantize, reestimate_batch_norm
from hawq.records import BitPlan, Block, Estimate, Phase, Precision, RunReport, Sensitivity
from hawq.sensitivity import analyze

__version__ = "0.1.0"

__all__ = [
    "LSQ",
    "BitPlan",
    "Block",
    "Estimate",
    "FineTuning",
    "Fisher",
    "GradientNorm",
    "HawqV3",
    "Hutchinson",
    "IntegerProgram",
    "Lanczos",
    "Manual",
    "Monotone",
    "Phase",
    "PowerIteration",
    "Precision",
    "RandomScore",
    "RunReport",
    "Sensitivity",
    "Uniform",
    "UniformBits",
    "allocate",
    "analyze",
    "export_onnx",
    "find_blocks",
    "finetune",
    "load",
    "packed_overhead",
    "quantize",
    "reestimate_batch_norm",
    "save",
]
