"""Networks that a runtime computes in integers (the package is not called as the verb `hawq.deploy` is)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hawq.deployment.settings import DyadicReport, NoDeployment, OnnxDeployment

if TYPE_CHECKING:
    from hawq.deployment.deploying import deploy, float_model
    from hawq.deployment.dyadic import IntegerNetwork, integer_network
    from hawq.deployment.records import Deployed, LayerRecord, RuntimeRecord
    from hawq.deployment.runtimes import OnnxRuntime, OpenVino, available, runtime_versions

_HOMES = {
    "deploying": ("deploy", "float_model"),
    "dyadic": ("IntegerNetwork", "integer_network"),
    "records": ("Deployed", "LayerRecord", "RuntimeRecord"),
    "runtimes": ("OnnxRuntime", "OpenVino", "available", "runtime_versions"),
}

__all__ = [
    "Deployed",
    "DyadicReport",
    "IntegerNetwork",
    "LayerRecord",
    "NoDeployment",
    "OnnxDeployment",
    "OnnxRuntime",
    "OpenVino",
    "RuntimeRecord",
    "available",
    "deploy",
    "float_model",
    "integer_network",
    "runtime_versions",
]


def __getattr__(name: str) -> Any:
    """Imports ONNX only where a network is deployed: settings alone need none of it."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"hawq.deployment.{home}"), name)
    raise AttributeError(f"module 'hawq.deployment' has no attribute {name!r}")
