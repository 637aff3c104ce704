"""Quantisers, and how they are put into a network."""

from hawq.quantization.batch_norm import CarriedBatchNorm, freeze_batch_norm, reestimate_batch_norm
from hawq.quantization.dorefa import DoReFa
from hawq.quantization.fake_quantize import FakeQuantizer, fake_quantize
from hawq.quantization.lsq import LSQ
from hawq.quantization.model import (
    BIT_WIDTHS,
    Quantization,
    Quantizer,
    activation_errors,
    attach,
    attach_input_quantizer,
    check_plan_fits,
    enable,
    quantize,
    weight_errors,
    weight_quantizer,
)
from hawq.quantization.pact import PACT
from hawq.quantization.rvquant import RVQuant
from hawq.quantization.uniform import Uniform

__all__ = [
    "BIT_WIDTHS",
    "LSQ",
    "PACT",
    "CarriedBatchNorm",
    "DoReFa",
    "FakeQuantizer",
    "Quantization",
    "Quantizer",
    "RVQuant",
    "Uniform",
    "activation_errors",
    "attach",
    "attach_input_quantizer",
    "check_plan_fits",
    "enable",
    "fake_quantize",
    "freeze_batch_norm",
    "quantize",
    "reestimate_batch_norm",
    "weight_errors",
    "weight_quantizer",
]
