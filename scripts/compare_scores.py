"""The optimum of each score against the uniform network of the same bytes, without training, on all test images.

    python scripts/compare_scores.py SENSITIVITY [SENSITIVITY …] [--bits 5,4,3] [--refine N] [--images N] [--out FOLDER]
        [bits.activations=8] model=resnet20 model.checkpoint=… dataset=cifar10 dataset.path=…

A sensitivity is the sensitivity.json of a run; several may hold different scores of the same network, of which the
first of a name counts. With kl and trace their geometric mean is compared as well. Each budget is
the uniform network at so many bits, its first and last block at 8; activations are float unless bits.activations is
given. Overrides are those of train.py. The change of accuracy has a 95 % interval from the paired differences of the
images. With --refine each plan is also refined by at most N measured plans, judged on search.num_images training
images. Results are kept as JSON in --out: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hawq.allocation import IntegerProgram, UniformBits
from hawq.data import fixed_batches, sample_indices
from hawq.experiment.artifacts import fingerprint
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.prepare import claim, prepare_trained
from hawq.experiment.progress import Console
from hawq.files import write_whole
from hawq.records import FLOAT_BITS, KL_AND_TRACE, BitPlan, Measured, Precision, Sensitivity, read_sensitivity
from hawq.report import markdown, paired_difference
from hawq.report.wording import signed
from hawq.search import refine
from hawq.trials import Outcomes, Trials, mean_with_error

_UNIFORM = "uniform"


def main() -> None:
    """Parses the command line, measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sensitivity", nargs="+", help="sensitivity.json of runs, then overrides of train.py")
    parser.add_argument("--bits", type=_numbers, default=[5, 4, 3], help="budgets as bits of a uniform network")
    parser.add_argument("--refine", type=int, default=0, help="most plans that are measured to refine each plan")
    parser.add_argument("--images", type=int, help="test images, all unless given")
    parser.add_argument("--out", type=Path, default=Path("outputs/scores"))
    given, more = parser.parse_known_args()
    words = [*given.sensitivity, *more]
    files = [Path(word) for word in words if word.endswith(".json") and "=" not in word]
    overrides = [word for word in words if Path(word) not in files]
    try:
        print(compare(files, overrides, given.bits, given.refine, given.images, given.out))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def compare(
    files: Sequence[Path], overrides: Sequence[str], budgets: Sequence[int], swaps: int, images: int | None, out: Path
) -> str:
    """The table over all budgets and scores, best first within a budget.

    Raises ValueError or OSError, with one sentence, for input that does not fit.
    """
    if not files:
        raise ValueError("no sensitivity was given: name the sensitivity.json of a run with several scores")
    settings, inputs = prepare_trained([f"bits.activations={FLOAT_BITS}", *overrides], out)
    if not isinstance(settings.bits, IntegerProgram) or not isinstance(settings.bits.activations, int):
        raise ValueError("plans are those of bits=mixed with activations of one width: give bits.activations=8, say")
    found = [read_sensitivity(path) for path in files]
    bench = Bench(inputs, settings, found[0], images, out)
    claim(out, overrides, {"images": images, "sensitivity": [fingerprint(path.read_text()) for path in files]})
    rows = [row for bits in budgets for row in _rows(bench, found, bits, swaps)]
    return markdown(("bits", "plan by", "plan KiB", "KL", "accuracy %", "against uniform, 95 %"), rows)


class Bench:
    """Measures plans on the test images, each once: hits and KL of every image are kept in a file a plan."""

    def __init__(
        self, inputs: Inputs, settings: Settings, sensitivity: Sensitivity, images: int | None, out: Path
    ) -> None:
        self.inputs, self.settings, self._out = inputs, settings, out
        known = {block.name for block in inputs.blocks}
        if {block.name for block in sensitivity.blocks} != known:
            raise ValueError("the sensitivity is of a network with other blocks: give that of this model")
        wanted, seed = settings.search, settings.options.seed
        self._calibration = inputs.calibration(wanted.calibration_images, wanted.batch_size, seed)
        test = inputs.test_images()
        chosen = range(len(test)) if images is None else sample_indices(len(test), images, seed)
        self._batches = fixed_batches(test, chosen, wanted.batch_size, inputs.device)
        self._trials: Trials | None = None

    def measured(self, name: str, plan: BitPlan) -> tuple[Measured, Tensor]:
        """Which images of all a plan gets wrong, and its KL of each (N,)."""
        bits = [
            [block, precision.weight_bits, precision.activation_bits] for block, precision in plan.precisions.items()
        ]
        file = self._out / f"{name}.json"
        stored = json.loads(file.read_text()) if file.is_file() else {}
        if stored.get("plan") != bits:
            found = self._measure(plan.precisions)
            assert found.hits is not None
            stored = {"plan": bits, "hits": found.hits.int().tolist(), "kl": [float(f"{x:.5g}") for x in found.kl]}
            write_whole(file, json.dumps(stored).encode())
        hits = stored["hits"]
        wrong = tuple(place for place, hit in enumerate(hits) if not hit)
        return Measured(100 * sum(hits) / len(hits), len(hits), wrong), torch.tensor(stored["kl"]).double()

    def _measure(self, precisions: Mapping[str, Precision]) -> Outcomes:
        if self._trials is None:
            inputs, quantizer = self.inputs, self.settings.quantizer
            self._trials = Trials(inputs.network.eval(), inputs.blocks, self._batches, self._calibration, quantizer)
            print(f"float: {self._trials.float.accuracy:.2f} %", flush=True)
        return self._trials.measure(precisions)

    def refined(self, allocator: IntegerProgram, sensitivity: Sensitivity) -> BitPlan:
        """The plan of an allocator with refinement, judged on training images drawn by the seed."""
        wanted, seed = self.settings.search, self.settings.options.seed
        images = self.inputs.fixed_batches(wanted.num_images, wanted.batch_size, seed)
        own: dict[str, Any] = {"temperature": wanted.temperature, "quantizer": self.settings.quantizer}
        network = self.inputs.network.eval()
        return refine(network, sensitivity, images, self._calibration, allocator, **own, progress=Console())


def _rows(bench: Bench, found: Sequence[Sensitivity], bits: int, swaps: int) -> list[tuple[str, ...]]:
    """One row a plan at a budget, the least KL first."""
    program = bench.settings.bits
    assert isinstance(program, IntegerProgram) and isinstance(program.activations, int)
    uniform = UniformBits(bits, activations=program.activations).allocate(found[0])
    expected, _ = bench.measured(f"{bits}-{_UNIFORM}", uniform)
    rows = [(_UNIFORM, uniform)]
    program = replace(program, unit="uniform_bits", target=bits)
    for score, sensitivity in _scores(found):
        own = replace(program, score=score)
        rows.append((score, own.allocate(sensitivity)))
        if swaps:
            rows.append((f"{score}, refined {swaps}", bench.refined(replace(own, refine=swaps), sensitivity)))
    lines = []
    for name, plan in rows:
        outcome, kl = bench.measured(f"{bits}-{name.replace(', ', '-').replace(' ', '-')}", plan)
        change = paired_difference(outcome, expected) if name != _UNIFORM else None
        against = f"{signed(change.value)} ({signed(change.low)} to {signed(change.high)})" if change else ""
        mean, of_kl = mean_with_error(kl)
        size = f"{plan.cost.weight_bytes / 1024:.1f}"
        accuracy = f"{outcome.accuracy:.2f}"
        lines.append((mean, (f"{bits}", name, size, f"{mean:.4f} ± {of_kl:.4f}", accuracy, against)))
        print(" | ".join(lines[-1][1]), flush=True)
    return [line for _, line in sorted(lines)]


def _scores(found: Sequence[Sensitivity]) -> Iterator[tuple[str, Sensitivity]]:
    """Each score once, with a sensitivity that holds all of them."""
    tables = {
        table.score: table
        for sensitivity in reversed(found)
        for table in sensitivity.scores
        if table.weights.keys() >= {block.name for block in sensitivity.blocks}
    }
    whole = found[0].with_scores(list(tables.values()))
    yield from ((score, whole) for score in [*tables, *([KL_AND_TRACE] if {"kl", "trace"} <= tables.keys() else [])])


if __name__ == "__main__":
    main()
