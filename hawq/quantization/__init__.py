"""Quantisers, and how they are put into a network."""

from hawq.quantization.attaching import (
    Quantization,
    Quantizer,
    attach,
    attach_input_quantizer,
    check_plan_fits,
    input_quantizer,
    original_weight,
    refuse_quantized,
    weight_quantizer,
)
from hawq.quantization.batch_norm import CarriedBatchNorm, batch_statistics, freeze_batch_norm, reestimate_batch_norm
from hawq.quantization.calibration import InputSample, input_batches, observe_inputs
from hawq.quantization.dorefa import DoReFa
from hawq.quantization.fake_quantize import FakeQuantizer, fake_quantize
from hawq.quantization.lsq import LSQ, LearnedStep
from hawq.quantization.model import (
    QuantizedWeights,
    activation_errors,
    enable,
    quantize,
    quantized_weight,
    reached_blocks,
    weight_errors,
)
from hawq.quantization.pact import PACT
from hawq.quantization.rvquant import RVQuant
from hawq.quantization.uniform import Uniform
from hawq.records import BIT_WIDTHS

__all__ = [
    "BIT_WIDTHS",
    "LSQ",
    "PACT",
    "CarriedBatchNorm",
    "DoReFa",
    "FakeQuantizer",
    "InputSample",
    "LearnedStep",
    "Quantization",
    "QuantizedWeights",
    "Quantizer",
    "RVQuant",
    "Uniform",
    "activation_errors",
    "attach",
    "attach_input_quantizer",
    "batch_statistics",
    "check_plan_fits",
    "enable",
    "fake_quantize",
    "freeze_batch_norm",
    "input_batches",
    "input_quantizer",
    "observe_inputs",
    "original_weight",
    "quantize",
    "quantized_weight",
    "reached_blocks",
    "reestimate_batch_norm",
    "refuse_quantized",
    "weight_errors",
    "weight_quantizer",
]
