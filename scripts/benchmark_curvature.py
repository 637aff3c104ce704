"""Block curvature against its peers, in one run: seconds, cost in gradients, memory, error against a reference.

    pip install pyhessian curvlinops-for-pytorch
    python scripts/benchmark_curvature.py resnet20 --data cifar10.npz --checkpoint resnet20_optA_akamaster.th
    python scripts/benchmark_curvature.py resnet50 --images FOLDER [--blocks layer2.0 fc]

A gradient equivalent is the time of one forward and backward of the network as given, all weights, the same samples.
`resnet50` is untrained: its batch norms have seen the images once. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from hawq.blocks import find_blocks
from hawq.curvature import (
    BlockGaussNewton,
    BlockHessian,
    BlockOperator,
    Hutchinson,
    Lanczos,
    LowRank,
    Solver,
    solve_blocks,
)
from hawq.data import Cifar10, ImageFolder, Images, fixed_batches, sample_indices
from hawq.measurement import measured, memory_in_use_bytes
from hawq.models import ModelSpec
from hawq.records import Preprocessing
from hawq.report import markdown
from hawq.sensitivity import block_weights

PEERS = ["SciPy eigsh, our products", "curvlinops and eigsh", "PyHessian"]
COLUMNS = ("method", "seconds", "gradients", "products, rows", "peak MiB", "largest error", "speed-up over PyHessian")


@dataclass
class Case:
    """A network, its samples, the weights of its blocks, and the unit of cost."""

    title: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    parameters: dict[str, list[Tensor]]
    gradient_seconds: float = 0.0

    def operator(self, kind: type[BlockOperator]) -> BlockOperator:
        return kind(self.model, self.parameters, [self.batch], nn.functional.cross_entropy)


@dataclass
class Result:
    """Value a block, number of products, and what it took."""

    values: dict[str, float]
    products: int
    seconds: float = 0.0
    peak_mib: float = 0.0


def ours(case: Case, kind: type[BlockOperator], solver: Solver, quantity: str) -> Result:
    found = solve_blocks(case.operator(kind), solver, seed=0)
    values = {name: estimates[quantity].value for name, estimates in found.items()}
    return Result(values, sum(estimates[quantity].products for estimates in found.values()))


def scipy_eigsh(case: Case) -> Result:
    """ARPACK on our exact products, one block after the other, tolerance 1 %."""
    operator, calls = case.operator(BlockHessian), [0]
    values = {}
    for name, weights in case.parameters.items():
        size = sum(weight.numel() for weight in weights)

        def multiply(vector: np.ndarray, name: str = name) -> np.ndarray:
            calls[0] += 1
            return operator.products({name: torch.from_numpy(vector.ravel()).float()})[name].numpy()

        shape = LinearOperator((size, size), matvec=multiply, dtype=np.float32)
        values[name] = float(eigsh(shape, k=1, which="LA", tol=0.01, return_eigenvectors=False)[0])
    return Result(values, calls[0])


def curvlinops_eigsh(case: Case) -> Result:
    """ARPACK on the peer's products, one block after the other, tolerance 1 %."""
    curvlinops = importlib.import_module("curvlinops")
    values = {}
    for name, weights in only(case):
        operator = curvlinops.HessianLinearOperator(
            case.model, nn.CrossEntropyLoss(), weights, [case.batch], check_deterministic=False
        ).to_scipy()
        values[name] = float(eigsh(operator, k=1, which="LA", tol=0.01, return_eigenvectors=False)[0])
    return Result(values, 0)  # its products are not counted


def pyhessian(case: Case, quantity: str) -> Result:
    """The peer with its defaults, one block after the other; other blocks' weights need no gradient."""
    module: Any = importlib.import_module("pyhessian.hessian")
    original, calls = module.hessian_vector_product, [0]

    def counted(*arguments: Any) -> Any:
        calls[0] += 1
        return original(*arguments)

    module.hessian_vector_product = counted
    values = {}
    try:
        torch.manual_seed(0)  # its start vectors
        for name, _ in only(case):
            peer = module.hessian(case.model, nn.CrossEntropyLoss(), data=case.batch, cuda=False)
            values[name] = peer.eigenvalues()[0][0] if quantity == "eigenvalue" else float(np.mean(peer.trace()))
    finally:
        module.hessian_vector_product = original
    return Result(values, calls[0])


def only(case: Case) -> Iterator[tuple[str, list[Tensor]]]:
    """Each block in turn, as the only one whose weights need a gradient."""
    for name, weights in case.parameters.items():
        case.model.requires_grad_(False).zero_grad(set_to_none=True)
        for weight in weights:
            weight.requires_grad_(True)
        yield name, weights
    case.model.requires_grad_(True).zero_grad(set_to_none=True)


def timed(work: Callable[[], Result]) -> Result:
    before = memory_in_use_bytes(torch.device("cpu")) / 2**20
    with measured() as cost:
        started = time.perf_counter()
        result = work()
        result.seconds = time.perf_counter() - started
    result.peak_mib = cost.peak_memory_mib - before
    return result


def gradient_seconds(case: Case) -> float:
    """The fastest of five plain gradients."""
    weights = [weight for block in case.parameters.values() for weight in block]
    times = []
    for _ in range(5):
        started = time.perf_counter()
        torch.autograd.grad(nn.functional.cross_entropy(case.model(case.batch[0]), case.batch[1]), weights)
        times.append(time.perf_counter() - started)
    return min(times)


def table(case: Case, quantity: str, methods: dict[str, Callable[[], Result]], references: dict[str, Any]) -> str:
    """One row a method; the reference of a method is the one whose name its own contains, else the Hessian's."""
    case.gradient_seconds = gradient_seconds(case)
    results = {}
    for name, work in methods.items():
        try:
            results[name] = timed(work)
            print(f"{name}: {results[name].seconds:.1f} s", file=sys.stderr, flush=True)
        except ImportError as missing:
            print(f"left out: {name} ({missing})", flush=True)
    slowest = results["PyHessian"].seconds if "PyHessian" in results else None
    rows = []
    for name, result in results.items():
        truth = references["ggn" if "ggn" in name else "hessian"]
        error = max(abs(result.values[block] / truth[block] - 1) for block in truth)
        rows.append(
            (
                name,
                f"{result.seconds:.1f}",
                f"{result.seconds / case.gradient_seconds:.1f}",
                str(result.products or "–"),
                f"{result.peak_mib:.0f}",
                f"{error:.2%}",
                "–" if slowest is None else f"{slowest / result.seconds:.1f}×",
            )
        )
    title = f"{case.title}: {quantity}, {len(case.parameters)} blocks, one gradient {case.gradient_seconds:.2f} s"
    return f"\n{title}\n\n{markdown(COLUMNS, rows)}"


def report(case: Case, peers: Sequence[str], traces: bool, start: str) -> None:
    """One table of eigenvalues, one of traces; the truth of eigenvalues begins at `start`."""
    tight = Lanczos(1e-3, 200, start_from=start)  # λ is then known to about 1e-5
    truths = {
        name: ours(case, kind, tight, "eigenvalue").values
        for name, kind in (("hessian", BlockHessian), ("ggn", BlockGaussNewton))
    }
    methods = {
        "ours": lambda: ours(case, BlockHessian, Lanczos(), "eigenvalue"),
        "ours (ggn)": lambda: ours(case, BlockGaussNewton, LowRank(), "eigenvalue"),
        "ours (ggn by products)": lambda: ours(case, BlockGaussNewton, Lanczos(), "eigenvalue"),
        "SciPy eigsh, our products": lambda: scipy_eigsh(case),
        "curvlinops and eigsh": lambda: curvlinops_eigsh(case),
        "PyHessian": lambda: pyhessian(case, "eigenvalue"),
    }
    chosen = {name: work for name, work in methods.items() if name.startswith("ours") or name in peers}
    print(table(case, "largest eigenvalue", chosen, truths), flush=True)
    if traces:
        every_row = LowRank("trace", 1e-6, 10**6, curvature="hessian")  # no sketches: exact
        truth = {"hessian": ours(case, BlockHessian, every_row, "trace").values}
        by_trace = {
            "ours": lambda: ours(case, BlockHessian, LowRank("trace", 0.05, curvature="hessian"), "trace"),
            "ours (by products)": lambda: ours(case, BlockHessian, Hutchinson(rank=8), "trace"),
            "PyHessian": lambda: pyhessian(case, "trace"),
        }
        print(table(case, "trace at 5 % standard error", by_trace, truth), flush=True)


def resnet20(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """The first 128 training images of CIFAR-10, by blocks (with traces) and by layers."""
    source = ModelSpec("resnet20", checkpoint=arguments.checkpoint).build(10)
    assert source.normalization is not None
    data = Cifar10(arguments.data)
    splits = data.open()
    images = Images(splits.train_images, splits.train_labels, data.prepare(source.preprocessing, source.normalization))
    (batch,) = fixed_batches(images, range(128), 128, torch.device("cpu"))
    model = source.network.eval()
    for granularity in ("block", "layer"):
        title = f"ResNet20, CIFAR-10, 128 images, by {granularity}"
        blocks = find_blocks(model, granularity=granularity)
        yield Case(title, model, batch, {b.name: block_weights(model, b) for b in blocks}), granularity == "block"


def resnet50(arguments: argparse.Namespace) -> Iterator[tuple[Case, bool]]:
    """16 images of 160² from a folder with val/<class>/*."""
    torch.manual_seed(0)
    model = ModelSpec("resnet50").build(1000).network
    data = ImageFolder(arguments.images)
    splits = data.open()
    images = Images(
        splits.test_images, splits.test_labels, data.prepare(Preprocessing(160, 0.875, "bilinear"), data.normalization)
    )
    (batch,) = fixed_batches(images, sample_indices(len(images), 16, 0), 16, torch.device("cpu"))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # timm begins with zeros in the last of a unit, so that nothing would curve
            module.momentum = 1.0
    model(batch[0])
    parameters = {block.name: block_weights(model, block) for block in find_blocks(model)}
    yield Case("timm resnet50, 16 images of 160²", model.eval(), batch, parameters), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("resnet20", "resnet50"))
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--checkpoint", help="weights of ResNet20")
    parser.add_argument("--images", help="folder with val/<class>/*")
    parser.add_argument("--blocks", nargs="*", help="only these; all unless given")
    parser.add_argument("--peers", nargs="*", default=PEERS, help=f"of {PEERS}")
    arguments = parser.parse_args()
    cases = {"resnet20": resnet20, "resnet50": resnet50}[arguments.case]
    for case, traces in cases(arguments):
        if arguments.blocks is not None:
            case.parameters = {name: weights for name, weights in case.parameters.items() if name in arguments.blocks}
        report(case, arguments.peers, traces, "gradient" if arguments.case == "resnet50" else "random")


if __name__ == "__main__":
    main()
