"""Networks that a runtime computes in integers (the package is not called as the verb `hawq.deploy` is)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hawq.deployment.settings import DyadicReport, NoDeployment, OnnxDeployment
from hawq.lazy import lazy_names

if TYPE_CHECKING:
    from hawq.deployment.deploying import deploy, float_model
    from hawq.deployment.dyadic import IntegerNetwork, integer_network
    from hawq.deployment.records import Deployed, LayerRecord, RuntimeRecord
    from hawq.deployment.runtimes import OnnxRuntime, OpenVino, available, runtime_versions

_HOMES = {
    "Deployed": "records",
    "IntegerNetwork": "dyadic",
    "LayerRecord": "records",
    "OnnxRuntime": "runtimes",
    "OpenVino": "runtimes",
    "RuntimeRecord": "records",
    "available": "runtimes",
    "deploy": "deploying",
    "float_model": "deploying",
    "integer_network": "dyadic",
    "runtime_versions": "runtimes",
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


__getattr__ = lazy_names(__name__, _HOMES)
