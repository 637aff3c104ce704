"""The league of searches for a plan: the same network, limits, images and number of measured plans for each.

    python scripts/compare_searches.py [--evaluations 100,300] [--seeds 5] [--searches NAME,…] [--out FOLDER]
        [--against NAME] [--sensitivity FILE]
        model=resnet20 model.checkpoint=… dataset=cifar10 dataset.path=… bits.target=10 …

Overrides are those of train.py: network, data, quantiser, and the limits and candidates of bits=mixed; search.judge,
search.temperature, search.num_images and search.steps say what plans are judged on. All are judged on the same test
images, drawn by the seed, without their labels unless the judge needs these; what a search ends with is measured again
on search.other_images other ones, and compared there with what --against ends with, image by image (unless given, the
refined optimum of the score). A plan that one search has measured is not measured again for another, but counts all
the same. Results are kept as JSON in --out: the same command goes on where it was stopped. Without --sensitivity the
curvature is measured first; a sensitivity.json of any run of train.py may have more scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hawq.allocation import IntegerProgram, PlanSpace
from hawq.data import fixed_batches, sample_indices
from hawq.experiment.artifacts import PartialCheckpoint, fingerprint
from hawq.experiment.config.options import Settings
from hawq.experiment.inputs import Inputs
from hawq.experiment.prepare import claim, prepare_trained
from hawq.experiment.progress import Console
from hawq.files import write_whole
from hawq.records import (
    SCORES,
    SENSITIVITY_SCHEMA,
    BitPlan,
    Precision,
    Sensitivity,
    dump_record,
    read_sensitivity,
    to_dict,
)
from hawq.report.search_figure import searches_figure
from hawq.report.search_table import OPTIMUM, searches_table
from hawq.search import Haq, JointSteps, Objective, OptunaSearch, Plans, RandomSearch
from hawq.search.layer_facts import layer_facts
from hawq.search.measuring import judged, measure_with
from hawq.search.refining import Found, refined
from hawq.search.searching import option_scores
from hawq.sensitivity import analyze
from hawq.trials import Trials, mean_with_error

Run = Callable[[Objective, Plans, int], Found]
_PUBLISHED_EPISODES = 600
_VALUES = "other_values"
_REFINED, _BY_CHANCE = "refined from", ("random", "Optuna TPE", "Optuna CMA-ES", "HAQ", "HAQ with noise by budget")
_NAMES = (*(f"{kind} {score}" for score in SCORES for kind in (OPTIMUM, _REFINED)), *_BY_CHANCE)


@dataclass(frozen=True)
class Contest:
    """What all searches share: network, plans, images, and the plans that were measured already."""

    inputs: Inputs
    settings: Settings
    sensitivity: Sensitivity
    trials: Trials
    others: Trials
    plans: Plans
    out: Path

    @property
    def score(self) -> str:
        """The score that bits are chosen by."""
        assert isinstance(self.settings.bits, IntegerProgram)
        return self.sensitivity.score_name(self.settings.bits.score)

    def prepare(self) -> Callable[[Any], None]:
        """What happens to a quantised network before it is measured."""
        steps, tuning = self.settings.search.steps, self.settings.finetune
        if not steps:
            return lambda network: None
        data = self.inputs.training_data(tuning.batch_size, self.settings.options.seed)
        return JointSteps(data, steps, tuning, self.settings.options.seed)


class Shared:
    """The measured plans of all searches in one file: each save adds to what is there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._kept = PartialCheckpoint(folder)
        self.state = self._kept.load()

    def load(self) -> dict[str, Any] | None:
        """All plans measured so far."""
        return self.state

    def save(self, state: dict[str, Any]) -> None:
        """What a search knows, which holds all that it was given."""
        self.state = state
        self._kept.save(state)


def main() -> None:
    """Parses the command line, runs what is missing, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=_numbers, default=[100, 300])
    parser.add_argument("--seeds", type=_positive, default=5)
    parser.add_argument(
        "--searches",
        type=lambda text: [part.strip() for part in text.split(",")],
        help="names or how they begin, with commas; all unless given",
    )
    parser.add_argument("--against", help="the search that the others are compared with, image by image")
    parser.add_argument("--sensitivity", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/searches/league"))
    parser.add_argument("overrides", nargs="*")
    given, more = parser.parse_known_args()
    try:
        chosen(_NAMES, given.searches, given.against)  # what no network could have is refused before any work
        contest = begin([*given.overrides, *more], given.sensitivity, given.out)
        all_searches = searches(contest)
        names = chosen(list(all_searches), given.searches, given.against)
        found = [
            record
            for name in names
            for run, seeded in [all_searches[name]]
            for most in (given.evaluations if not name.startswith(OPTIMUM) else given.evaluations[:1])
            for seed in range(given.seeds if seeded else 1)
            for record in [play(contest, name, run, most, seed)]
        ]
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print("\n" + searches_table(found, given.against or f"{_REFINED} {contest.score}"))
    print(f"\n{draw(contest, found)}")


def _numbers(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def chosen(names: Sequence[str], wanted: Sequence[str] | None, against: str | None = None) -> list[str]:
    """The names that are wanted or begin with what is wanted, in their own order; all for None.

    Raises ValueError where one of `wanted` is neither, or `against` is not among those chosen.
    """
    found: set[str] = set(names if wanted is None else ())
    for word in wanted or ():
        matches = [word] if word in names else [name for name in names if name.startswith(word)]
        if not matches:
            raise ValueError(f"--searches: none is called {word!r} or begins so; there are {', '.join(names)}")
        found.update(matches)
    if against not in (None, *found):
        raise ValueError(f"--against={against} is none of the searches: give one of {', '.join(sorted(found))}")
    return [name for name in names if name in found]


def begin(overrides: Sequence[str], sensitivity: Path | None, out: Path) -> Contest:
    """Opens network and data, analyses the network unless a file is given, and measures the float network."""
    known = None if sensitivity is None else fingerprint(sensitivity.read_text())
    settings, inputs = prepare_trained(overrides, out)
    if not isinstance(settings.bits, IntegerProgram):
        raise ValueError("the searches share the limits of bits=mixed: leave bits= out and give bits.target=...")
    network, seed, wanted = inputs.network.eval(), settings.options.seed, settings.search
    images = inputs.test_images()
    order = sample_indices(len(images), wanted.num_images + wanted.other_images, seed)
    judging, other = order[: wanted.num_images], order[wanted.num_images :]
    if len(other) < 2:
        raise ValueError(f"search.num_images={wanted.num_images} leaves no other test images: give fewer")
    claim(out, overrides, {"sensitivity": known})
    kept = sensitivity or out / "sensitivity.json"
    if not kept.is_file():
        batches = inputs.fixed_batches(settings.analysis.num_samples, settings.analysis.batch_size, seed)
        own: dict[str, Any] = {"solver": settings.solver, "quantizer": settings.quantizer, "seed": seed}
        analysed = analyze(network, inputs.blocks, batches, **own, progress=Console())
        analysed = replace(analysed, overhead_bytes=inputs.overhead_bytes)
        write_whole(kept, dump_record(SENSITIVITY_SCHEMA, analysed))
    found = read_sensitivity(kept)
    calibration = inputs.calibration(wanted.calibration_images, wanted.batch_size, seed)

    def trials(indices: Sequence[int], softness: float) -> Trials:
        batches = fixed_batches(images, indices, wanted.batch_size, inputs.device)
        return Trials(network, found.blocks, batches, calibration, settings.quantizer, temperature=softness)

    plans = Plans(settings.bits.problem(found.blocks, found.overhead_bytes))
    return Contest(inputs, settings, found, trials(judging, wanted.temperature), trials(other, 1.0), plans, out)


def searches(contest: Contest) -> dict[str, tuple[Run, bool]]:
    """Name → the search, and whether it depends on a seed."""
    bits = contest.settings.bits
    assert isinstance(bits, IntegerProgram)
    space = {field.name: getattr(bits, field.name) for field in fields(PlanSpace)}
    facts = layer_facts(contest.inputs.network, contest.plans.problem, contest.inputs.example())
    found: dict[str, tuple[Run, bool]] = {}
    blocks = {block.name for block in contest.sensitivity.blocks}
    for score in (table.score for table in contest.sensitivity.scores if table.weights.keys() >= blocks):
        start = replace(bits, score=score).allocate(contest.sensitivity)
        scores = option_scores(contest.plans, contest.sensitivity, bits, score)

        def optimum(objective: Objective, plans: Plans, seed: int, start: BitPlan = start) -> Found:
            objective.values(start.precisions)
            return Found(start.precisions, 0)

        def improved(
            objective: Objective, plans: Plans, seed: int, start: BitPlan = start, scores: Any = scores
        ) -> Found:
            errors = contest.settings.search.standard_errors
            return refined(objective, plans, start.precisions, scores, errors)

        found[f"{OPTIMUM} {score}"] = (optimum, False)
        found[f"{_REFINED} {score}"] = (improved, False)

    def by(make: Callable[[int, int], Any]) -> tuple[Run, bool]:
        return (lambda objective, plans, seed: make(objective.most, seed).search(objective, plans, facts), True)

    chance, tpe, cma, haq, less_noise = _BY_CHANCE
    found[chance] = by(lambda most, seed: RandomSearch(**space, evaluations=most, seed=seed))
    if find_spec("optuna") and find_spec("cmaes"):
        found[tpe] = by(lambda most, seed: OptunaSearch(**space, evaluations=most, seed=seed))
        found[cma] = by(lambda most, seed: OptunaSearch(**space, evaluations=most, sampler="cmaes", seed=seed))
    else:
        print("note: without Optuna, pip install 'hawq[search]'")
    found[haq] = by(lambda most, seed: Haq(**space, evaluations=most, seed=seed))

    def quieter(most: int, seed: int) -> Haq:
        return Haq(**space, evaluations=most, seed=seed, noise_decay=0.99 ** (_PUBLISHED_EPISODES / most))

    found[less_noise] = by(quieter)
    return found


def play(contest: Contest, name: str, run: Run, most: int, seed: int) -> dict[str, Any]:
    """The record of one search, from its file, or made now."""
    file = contest.out / f"{name.replace(' ', '_')}-e{most}-s{seed}.json"
    if file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text())
        if _VALUES not in stored:  # a record of before these were kept
            stored |= on_others(contest, {name: Precision(**bits) for name, bits in stored["plan"].items()})
            write_whole(file, _json(stored))
        return stored
    judge = contest.settings.search.judge
    measure = measure_with(contest.trials, judge, contest.prepare())
    title = f"{name}, {most} plans, seed {seed}"
    sizes, kept = contest.trials.batch_sizes, Shared(contest.out / "measured")
    with Objective(measure, sizes, most, checkpoint=kept, progress=Console(), title=title) as objective:
        found = run(objective, contest.plans, seed)
        value = objective.mean(found.plan)
    record = {
        "search": name,
        "evaluations": most,
        "measured": objective.evaluations,
        "seed": seed,
        "value": value,
        "curve": objective.curve,
        "plan": to_dict(found.plan),
    }
    record |= on_others(contest, found.plan)
    write_whole(file, _json(record))
    return record


def on_others(contest: Contest, plan: Mapping[str, Precision]) -> dict[str, Any]:
    """What a plan does on the other images; its KL of each of them is what plans are compared by."""
    outcomes = contest.others.measure(plan)
    values = judged(outcomes, "kl")
    mean, error = mean_with_error(values)
    found = {"other_kl": mean, "other_kl_error": error, "other_accuracy": outcomes.accuracy}
    return {**found, "other_images": len(values), _VALUES: values.tolist()}


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, allow_nan=False) + "\n").encode()


def draw(contest: Contest, records: Sequence[dict[str, Any]]) -> Path:
    """Best-so-far of every search at its largest number of plans."""
    names = dict.fromkeys(record["search"] for record in records)
    most = {name: max(r["evaluations"] for r in records if r["search"] == name) for name in names}
    curves = {
        name: [record["curve"] for record in records if record["search"] == name and record["evaluations"] == many]
        for name, many in most.items()
    }
    unseen = replace(contest.settings.search, images="test")
    label = unseen.about(contest.settings.search.num_images)
    return searches_figure(curves, label, str(contest.settings.model.name), contest.out / "searches.png")


if __name__ == "__main__":
    main()
