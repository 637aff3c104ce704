"""What is known of a deployed file; all of it goes into deploy.json."""

from __future__ import annotations

from dataclasses import dataclass, field

DEPLOYED_SCHEMA = "hawq.deployed/1"


@dataclass(frozen=True)
class LayerRecord:
    """One convolution or linear operator: bits of the plan (None: float), storage in the file, why it stays float."""

    name: str
    weight_bits: int | None
    activation_bits: int | None
    weight_storage: str
    activation_storage: str
    why_float: str


@dataclass(frozen=True)
class RuntimeRecord:
    """What one runtime did with the file.

    Args:
        runtime: its name.
        kernels: layer → kernel, whether in integers, share of the time.
        other_kernels: kind → how many ran.
        integer_layers, num_layers: "n of m layers in integers".
        differing_codes: largest share of one layer's codes that differ from PyTorch's, each layer fed PyTorch's codes.
        mean_differing_codes: mean of these shares over the layers.
        largest_difference: of a code.
        accuracy, reference_accuracy: percent, of the file and of PyTorch; None without data.
        accuracy_error: standard error of their difference in points.
        same_class: percent of the images that both put into the same class.
        num_images: that accuracy was measured on.
        milliseconds: batch size → deployed, float, speedup (float / deployed).
    """

    runtime: str
    kernels: dict[str, dict[str, object]]
    other_kernels: dict[str, int]
    integer_layers: int
    num_layers: int
    differing_codes: float
    mean_differing_codes: float
    largest_difference: int
    accuracy: float | None = None
    reference_accuracy: float | None = None
    accuracy_error: float | None = None
    same_class: float | None = None
    num_images: int = 0
    milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Deployed:
    """A deployed file: profile, bytes on disk beside those of the float network written the same way, its layers, and
    what each runtime did with it."""

    profile: str
    opset: int
    size_bytes: int
    float_size_bytes: int
    layers: tuple[LayerRecord, ...]
    runtimes: tuple[RuntimeRecord, ...]
    versions: dict[str, str]

    def __str__(self) -> str:
        share = self.size_bytes / self.float_size_bytes
        lines = [f"{self.profile}: {self.size_bytes:,} bytes, {share:.3f} of float ({self.float_size_bytes:,})"]
        for one in self.runtimes:
            line = f"  {one.runtime}: {one.integer_layers} of {one.num_layers} layers in integers"
            line += f"; {100 * one.differing_codes:.2g} % of a layer's codes differ at most"
            if one.accuracy is not None and one.reference_accuracy is not None:
                line += f"; accuracy {one.accuracy:.2f} % (PyTorch {one.reference_accuracy:.2f} %)"
                line += f", {one.same_class:.2f} % in the same class"
            for batch, times in one.milliseconds.items():
                line += f"; batch {batch}: {times['deployed']:.2f} ms, {times['speedup']:.2f} times float's speed"
            lines.append(line)
        floats = [layer.name for layer in self.layers if layer.why_float]
        return "\n".join([*lines, *([f"  float: {', '.join(floats)}"] if floats else [])])
