"""Run folders made in a moment: the files that a run of every stage leaves, without a network or a training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hawq.allocation import IntegerProgram, allocate, direct_baseline, frontier
from hawq.records import (
    PLAN_SCHEMA,
    SENSITIVITY_SCHEMA,
    BitPlan,
    Block,
    BlockSensitivity,
    Correlation,
    Estimate,
    FloatPart,
    LossIncrease,
    LossIncreases,
    Measured,
    PlanCorrelation,
    PlanOutcome,
    PlanScore,
    ResultRow,
    RunReport,
    Score,
    Searched,
    Sensitivity,
    StageRecord,
    Validated,
    ValidatedPlans,
    dump_record,
    to_dict,
)
from hawq.report import paired_difference, result_row

SIZES = (432, 4608, 4608, 13_824, 18_432, 55_296, 640)
NAMES = ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "fc")
IMAGES = 400


def sensitivity_of(seed: int = 0) -> Sensitivity:
    """Seven blocks of a small residual network, λ falling from the input."""
    rng, rows = np.random.default_rng(seed), []
    for name, size in zip(NAMES, SIZES, strict=True):
        block = Block(name, (f"{name}.a", f"{name}.b"), size, 64 * size, 1000, tie_group=None)
        value = float(rng.uniform(5, 50))
        errors = {bits: size * 4.0**-bits for bits in range(1, 9)}
        rows.append(BlockSensitivity(block, Estimate(value, 0.01 * value, 5, True, confidence=0.99), errors))
    return Sensitivity(tuple(rows), "lanczos", 256, 0.3, 6000)


def measured(wrong: int, seed: int) -> Measured:
    """So many of the images wrong, drawn by the seed; an image that is wrong always gets the same class."""
    chosen = np.sort(np.random.default_rng(seed).permutation(IMAGES)[:wrong])
    places = tuple(int(one) for one in chosen)
    return Measured(100 * (1 - wrong / IMAGES), IMAGES, places, tuple(place % 10 for place in places))


def made_run(
    folder: Path,
    *,
    seed: int = 0,
    target: float = 10.0,
    parent: Measured | None = None,
    tuned: Measured | None = None,
    sensitivity: Sensitivity | None = None,
    budgets: int = 12,
    searched: Searched | None = None,
) -> Path:
    """Writes the files of a run with every stage into `folder`, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    sensitivity = sensitivity or sensitivity_of()
    allocator = IntegerProgram(target)
    plan = replace(allocate(sensitivity, allocator), searched=searched)
    direct = direct_baseline(sensitivity, plan)
    (folder / "sensitivity.json").write_bytes(dump_record(SENSITIVITY_SCHEMA, sensitivity))
    (folder / "plan.json").write_bytes(dump_record(PLAN_SCHEMA, plan))
    (folder / "frontier.json").write_bytes(dump_record("hawq.frontier/2", frontier(sensitivity, allocator, budgets)))
    (folder / "validation.json").write_bytes(dump_record("hawq.validation/2", _validated(sensitivity)))
    config = {"seed": seed, "model": {"name": "toy"}, "dataset": {"_target_": "hawq.data.Digits"}}
    config |= {"finetune": {"eval_samples": 2000, "keep": "last"}, "float_network": {"keep": "last"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for place, ending in ((folder, 88.0), (folder / "direct", 85.0)):
        (place / "finetune").mkdir(parents=True, exist_ok=True)
        (place / "finetune" / "history.json").write_text(json.dumps(_history(ending)))
        (place / "model.safetensors").write_bytes(b"")
    (folder / "direct" / "plan.json").write_bytes(dump_record(PLAN_SCHEMA, direct))
    (folder / "landscape.json").write_text(json.dumps(_landscape()))
    (folder / "deploy.json").write_text(json.dumps(_deployed()))
    command = f"python train.py model=toy bits.target={target:g} seed={seed}"
    parent, tuned = parent or measured(30, 1), tuned or measured(34, 2)
    report = _report(sensitivity, plan, direct, parent, tuned, config, command)
    (folder / "report.json").write_text(json.dumps({"schema": "hawq.report/1", **to_dict(report)}))
    return folder


def _report(
    sensitivity: Sensitivity,
    plan: BitPlan,
    direct: BitPlan,
    parent: Measured,
    tuned: Measured,
    config: dict[str, Any],
    command: str,
) -> RunReport:
    size = 4 * sum(SIZES)
    other = measured(60, 3)
    rows = [ResultRow("float", "32", "32", parent.accuracy, 1.0, size, 1.0, size / 2**20, parent.num_images)]
    for one, found in ((direct, other), (plan, tuned)):
        rows.append(result_row(one, found, one.cost.packed_bytes or 0, size, parent))
    return RunReport(
        rows=tuple(rows),
        stages=(StageRecord("analysis", "0123456789abcdef", False, 12.5, 900.0),),
        plan=plan,
        config=config,
        versions={"python": "3.11", "torch": "2", "hardware": "one thread"},
        git_commit="a" * 40,
        command=command,
        seconds=75.0,
        float_parts=(FloatPart("position", num_weights=640), FloatPart("attention", macs=10**6)),
        over_baseline=paired_difference(tuned, other),
    )


def _validated(sensitivity: Sensitivity) -> Validated:
    """λ‖ΔW‖² and chance, against increases that follow the first one, a few of them below zero."""
    rng, increases = np.random.default_rng(4), []
    omegas: dict[str, dict[str, dict[int, float]]] = {"lanczos": {}, "random": {}}
    for row in sensitivity.rows:
        for bits in (2, 4):
            omega = sensitivity.predicted("eigenvalue", row.block, "weights", bits).value
            omegas["lanczos"].setdefault(row.block.name, {})[bits] = omega
            omegas["random"].setdefault(row.block.name, {})[bits] = omega * float(rng.uniform(0.1, 10))
            loss = omega * 1e-4 - 0.003
            increases.append(LossIncrease(row.block.name, "weights", bits, loss, 0.002, 1.0, 0.5))
    scores = tuple(Score(name, "weights", "eigenvalue", table, 3.0, 40.0) for name, table in omegas.items())
    found = tuple(
        Correlation(name, "weights", None, 14, rho, (rho - 0.2, rho + 0.1), 0.0, (-0.1, 0.1))
        for name, rho in (("lanczos", 0.8), ("random", 0.3))
    )
    return Validated(LossIncreases(200, 0.3, 92.0, tuple(increases)), scores, found, (_plans(sensitivity),))


def _plans(sensitivity: Sensitivity) -> ValidatedPlans:
    """Six plans of one size: λ‖ΔW‖² ranks them well, chance does not."""
    names = [block.name for block in sensitivity.blocks]
    outcomes = tuple(
        PlanOutcome(dict.fromkeys(names, "4"), 10.0, 0.1 * place, 0.01, 0.05 * place, 0.01, 0.2 * place, 0.1)
        for place in range(1, 7)
    )
    scores = tuple(
        PlanScore(name, "bits.score=eigenvalue", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) for name in ("lanczos", "error")
    )
    correlations = tuple(
        PlanCorrelation(name, truth, 6, rho, (rho - 0.3, rho + 0.05), 0.2, (0.1, 0.3), 0.9 - rho, (0.0, 0.5))
        for name, rho in (("lanczos", 0.9), ("error", 0.7))
        for truth in ("kl", "loss", "accuracy")
    )
    return ValidatedPlans(10.0, 0, 200, 0.3, 92.0, outcomes, scores, correlations)


def _history(ending: float) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, 61):
        row: dict[str, Any] = {"step": step, "phase": min(step // 8, 6), "loss": 1 / step + 0.2, "lr": 0.02}
        if step % 6 == 0:
            row["accuracy"] = ending - 30 / step
        rows.append(row)
    return rows


def _landscape() -> dict[str, Any]:
    distances = np.linspace(-0.8, 0.8, 17)
    blocks = [
        {
            "name": name,
            "eigenvalue": value,
            "slope": -0.1,
            "distances": distances.tolist(),
            "losses": (0.3 - 0.1 * distances + 0.5 * value * distances**2 + distances**3).tolist(),
        }
        for name, value in (("conv1", 12.0), ("layer1.0", 9.0), ("fc", 4.0))
    ]
    return {"schema": "hawq.landscape/1", "bits": 4, "loss": 0.3, "blocks": blocks}


def _deployed() -> dict[str, Any]:
    runtime = {
        "runtime": "onnxruntime",
        "kernels": {},
        "other_kernels": {"QuantizeLinear": 9},
        "integer_layers": 12,
        "num_layers": 14,
        "differing_codes": 0.01,
        "mean_differing_codes": 0.001,
        "largest_difference": 1,
        "accuracy": 91.25,
        "reference_accuracy": 91.5,
        "accuracy_error": 0.4,
        "same_class": 99.0,
        "num_images": IMAGES,
        "milliseconds": {"1": {"deployed": 0.2, "float": 0.4, "speedup": 2.0}},
    }
    layer = {"name": "fc.a", "weight_bits": None, "activation_bits": None, "why_float": "its input is not quantised"}
    layer |= {"weight_storage": "float", "activation_storage": "float"}
    return {"schema": "hawq.deployed/1", "profile": "exact", "opset": 21, "size_bytes": 1, "float_size_bytes": 2} | {
        "layers": [layer],
        "runtimes": [runtime],
        "versions": {},
    }


def renamed(sensitivity: Sensitivity, old: str, new: str) -> Sensitivity:
    """The same with another name of one block."""
    rows = [
        replace(row, block=replace(row.block, name=new)) if row.block.name == old else row for row in sensitivity.rows
    ]
    return sensitivity.with_rows(rows)
