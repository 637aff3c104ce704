"""A quantised training step against the float step and against Brevitas', in one run, on random data of CIFAR's shape.

    pip install brevitas
    python scripts/benchmark_training.py [--batch 128] [--repeats 15] [--threads 1] [--device cuda] [--precision …]
        [--networks lsq …]

ResNet20 with weights of 4 bits, a step for each channel where the quantiser has one, and activations of 4 bits. Steps
are taken in turn, one of each network, so that other work on the machine meets all alike; the table has medians, each
network in the layout of memory that suits it better. Without Brevitas its row is left out (with BREVITAS_JIT=1 it
scripts its quantisers); on a GPU each network is also compiled.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from hawq.blocks import find_blocks
from hawq.costs import plan_cost
from hawq.finetuning.settings import PRECISIONS
from hawq.models import ModelSpec
from hawq.modes import full_precision
from hawq.quantization import LSQ, PACT, DoReFa, Quantizer, Uniform, quantize
from hawq.records import BitPlan, Precision
from hawq.report import markdown

BITS = 4
FLOAT = "float"
NETWORKS = ["lsq", "dorefa", "pact", "uniform", "Brevitas"]
_LONG = 0.1  # seconds from which a tenth of a millisecond says nothing
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@dataclass
class Contestant:
    """A network in training, what its steps took, and the memory that a step adds."""

    name: str
    layout: str
    network: nn.Module
    precision: str
    seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    def __post_init__(self) -> None:
        self.network.to(memory_format=LAYOUTS[self.layout]).train()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1e-4, momentum=0.9)

    def step(self, images: Tensor, labels: Tensor) -> None:
        images = images.to(memory_format=LAYOUTS[self.layout])
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = self.network(images)
        loss = nn.functional.cross_entropy(outputs.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def ours(model: nn.Module, images: Tensor, quantizer: Quantizer) -> nn.Module:
    blocks = find_blocks(model, images[:1])
    precisions = {block.name: Precision(BITS, BITS) for block in blocks}
    return quantize(model, blocks, BitPlan(precisions, "benchmark", plan_cost(blocks, precisions)), [images], quantizer)


def brevitas(model: nn.Module, images: Tensor) -> nn.Module:
    """Each layer becomes Brevitas' own, with a learned step for each channel of its weight and one for its input.

    As in ours, the layer that reads the image has signed inputs of 8 bits.
    """
    modules: Any = importlib.import_module("brevitas.nn")
    quantizers: Any = importlib.import_module("brevitas.quant.scaled_int")
    settings: dict[str, Any] = {
        "weight_quant": quantizers.Int8WeightPerChannelFloat,
        "weight_bit_width": BITS,
        "weight_scaling_impl_type": "parameter_from_stats",
    }
    network, first = copy.deepcopy(model), True
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        settings["input_quant"] = quantizers.Int8ActPerTensorFloat if first else quantizers.Uint8ActPerTensorFloat
        settings["input_bit_width"] = 8 if first else BITS
        made = (
            _convolution(modules, layer, settings)
            if isinstance(layer, nn.Conv2d)
            else _linear(modules, layer, settings)
        )
        made.load_state_dict(layer.state_dict(), strict=False)  # theirs has the steps besides
        network.set_submodule(name, made)
        first = False
    network = network.to(images.device).train()
    with torch.no_grad():
        for _ in range(quantizers.Uint8ActPerTensorFloat.collect_stats_steps + 1):
            network(images[:8])  # input steps are statistics until then, and learned from then on
    return network


def _convolution(modules: Any, layer: nn.Conv2d, settings: dict[str, Any]) -> nn.Module:
    shape = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    made: nn.Module = modules.QuantConv2d(*shape, bias=layer.bias is not None, **settings)
    return made


def _linear(modules: Any, layer: nn.Linear, settings: dict[str, Any]) -> nn.Module:
    made: nn.Module = modules.QuantLinear(layer.in_features, layer.out_features, layer.bias is not None, **settings)
    return made


def peak_mib(work: Callable[[], None], device: torch.device) -> float:
    """MiB of tensors at the highest point of a step, above those that were there before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(change for _, change in changes)) / 2**20


def measure(contestants: list[Contestant], batch: tuple[Tensor, Tensor], repeats: int) -> None:
    """Warm steps first, then one of each in turn."""
    device = batch[0].device
    for contestant in contestants:
        contestant.step(*batch)
        contestant.peak_mib = peak_mib(lambda made=contestant: made.step(*batch), device)  # type: ignore[misc]
    for _ in range(repeats):
        for contestant in contestants:
            _wait(device)
            started = time.perf_counter()
            contestant.step(*batch)
            _wait(device)
            contestant.seconds.append(time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def table(contestants: list[Contestant]) -> str:
    """One row a network, in its faster layout; ratios over the float step, compiled over compiled."""
    best: dict[str, Contestant] = {}
    for contestant in sorted(contestants, key=lambda made: statistics.median(made.seconds), reverse=True):
        best[contestant.name] = contestant
    rows = []
    for name in dict.fromkeys(contestant.name for contestant in contestants):
        made = best[name]
        unit = best[f"{FLOAT}, compiled" if name.endswith("compiled") else FLOAT]
        median, spread = statistics.median(made.seconds), statistics.quantiles(made.seconds, n=4)
        ratio = median / statistics.median(unit.seconds)
        digits = 0 if median > _LONG else 1
        quartiles = f"{1e3 * spread[0]:.{digits}f} to {1e3 * spread[2]:.{digits}f}"
        rows.append(
            (name, made.layout, f"{1e3 * median:.{digits}f}", quartiles, f"{ratio:.2f}×", f"{made.peak_mib:.0f}")
        )
    return markdown(("step", "layout", "median ms", "quartiles ms", "over float", "peak MiB"), rows)


def networks(model: nn.Module, images: Tensor) -> dict[str, Callable[[], nn.Module]]:
    """What makes each network; a scripted one cannot be copied, so each layout has one made for it."""
    makers: dict[str, Callable[[], nn.Module]] = {FLOAT: lambda: copy.deepcopy(model)}
    for quantizer in (LSQ(), DoReFa(), PACT(), Uniform()):
        makers[quantizer.name] = lambda made=quantizer: ours(model, images, made)  # type: ignore[misc]
    try:
        importlib.import_module("brevitas.nn")
        makers["Brevitas"] = lambda: brevitas(model, images)
    except ImportError as missing:
        print(f"left out: Brevitas ({missing}); pip install brevitas", flush=True)
    return makers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15, help="steps of each network that are timed")
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, help=f"only these, beside float, of {NETWORKS}")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS, help="of the forward pass (autocast)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    images = torch.randn(options.batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (options.batch,), device=device)
    model = ModelSpec("resnet20").build(10).network.to(device)
    contestants = []
    for name, make in networks(model, images).items():
        if options.networks is not None and name not in (FLOAT, *options.networks):
            continue
        for layout in LAYOUTS:
            contestants.append(Contestant(name, layout, make(), options.precision))
            if device.type == "cuda":
                compiled: Any = torch.compile(make())
                contestants.append(Contestant(f"{name}, compiled", layout, compiled, options.precision))
    with full_precision(device):  # but for what a step does under autocast
        measure(contestants, (images, labels), options.repeats)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    title = f"ResNet20, batch {options.batch} of random 32² images, {options.precision}, {hardware}"
    print(f"{title}, {torch.get_num_threads()} threads, {options.repeats} steps each\n\n{table(contestants)}")


if __name__ == "__main__":
    main()
