"""Plans found by measurement in whole runs: what they leave behind, how they resume, what is refused before work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import compose_here, finished, read_json, run_folder, run_here

from hawq.errors import UserError
from hawq.experiment.config.build import build_settings
from hawq.experiment.prepare import prepare
from hawq.records import BitPlan, from_dict
from hawq.search.objective import Objective

TO_PLAN = "stages=[analysis,allocation]"
SMALL = ("search.num_images=12", "search.batch_size=6", "search.calibration_images=8", "search.other_images=10")


def plan_of(folder: Path) -> BitPlan:
    data = read_json(folder / "plan.json")
    data.pop("schema")
    return from_dict(data, BitPlan)


def test_a_refined_plan_is_cached_and_says_what_was_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tmp_path / "outputs"
    command = (TO_PLAN, "bits.refine=6", *SMALL)
    calls = []
    whole = Objective._run
    monkeypatch.setattr(Objective, "_run", lambda self, *given: calls.append(1) or whole(self, *given))

    def killed(self: Objective, *given: object) -> torch.Tensor:
        if len(calls) >= 3:
            raise KeyboardInterrupt
        calls.append(1)
        return whole(self, *given)

    monkeypatch.setattr(Objective, "_run", killed)
    assert run_here(outputs, *command) is not None  # stopped by hand
    monkeypatch.setattr(Objective, "_run", lambda self, *given: calls.append(1) or whole(self, *given))
    assert run_here(outputs, *command) is None
    plan = plan_of(run_folder(outputs))
    found = plan.searched
    assert found is not None and found.method == "refinement"
    assert len(calls) == found.evaluations <= 6
    assert found.judged.images == 12 and found.judged.about.startswith("KL to the float outputs on 12 training images")
    assert "T = 4" in found.judged.about
    assert found.others is not None and found.others.images == 10
    assert found.judged.gain == pytest.approx(found.judged.start - found.judged.found)
    assert all(use.slack >= 0 for use in plan.limits)
    (artifact,) = finished(outputs, "allocation")
    assert run_here(outputs, *command) is None
    assert len(calls) == found.evaluations  # nothing was measured again
    assert finished(outputs, "allocation") == [artifact]


def test_random_search_runs_as_an_option(tmp_path: Path) -> None:
    assert run_here(tmp_path / "outputs", TO_PLAN, "bits=random_search", "bits.evaluations=3", *SMALL) is None
    found = plan_of(run_folder(tmp_path / "outputs")).searched
    assert (found.method, found.evaluations, found.judged.gain) == ("random search", 3, None)


REFUSED = {
    "from a file": (
        ("stages=[allocation]", "allocation.sensitivity={file}", "bits.refine=5"),
        "bits.refine=5 measures plans, which needs the model and data that allocation.sensitivity=",
    ),
    "a search from a file": (
        ("stages=[allocation]", "allocation.sensitivity={file}", "bits=random_search"),
        "bits.evaluations=100 measures plans",
    ),
    "images that are not there": (("bits.refine=5", "search.images=/nowhere"), "search.images=/nowhere does not exist"),
    "labels that are not there": (
        ("bits.refine=5", "search.images={array}", "search.judge=errors"),
        "search.judge=errors needs labels",
    ),
    "too many held out": (
        ("bits.refine=5", "search.images=held_out", "search.num_images=1000"),
        "search.num_images=1000 of 1437 training images would be held out",
    ),
    "an unknown judge": (("search.judge=taste",), "search.judge='taste' is unknown"),
    "negative evaluations": (("bits.refine=-1",), "bits.refine=-1 is out of range"),
}


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8))
    return path


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_judged_is_refused_before_any_work(case: str, tmp_path: Path, array: Path) -> None:
    from sensitivities import made_sensitivity

    from hawq.records import SENSITIVITY_SCHEMA, dump_record

    file = tmp_path / "sensitivity.json"
    file.write_bytes(dump_record(SENSITIVITY_SCHEMA, made_sensitivity([1.0, 2.0], [10, 20])))
    overrides, complaint = REFUSED[case]
    given = [override.format(file=file, array=array) for override in overrides]
    with pytest.raises((ValueError, FileNotFoundError, UserError), match=r".") as error:
        prepare(build_settings(compose_here(f"outputs={tmp_path}", "tracking=none", *given)))
    assert complaint in str(error.value)


def test_held_out_images_are_kept_from_the_training_of_the_run(tmp_path: Path) -> None:
    def inputs(*overrides: str):  # type: ignore[no-untyped-def]
        return prepare(build_settings(compose_here(f"outputs={tmp_path}", "tracking=none", *overrides)))

    held = inputs("bits.refine=5", "search.images=held_out", "search.num_images=100")
    plain = inputs("search.images=held_out")  # nothing is measured, so nothing is held out
    assert len(plain.splits.train_images) == 1437 and plain.judging is None
    assert len(held.splits.train_images) == 1337 and held.data_facts["data"] != plain.data_facts["data"]
    images, labels = held.judging
    kept = {image.tobytes() for image in held.splits.train_images}
    everything = {image.tobytes() for image in plain.splits.train_images}
    assert len(images) == len(labels) == 100
    assert kept | {image.tobytes() for image in images} == everything


def test_images_of_the_user_may_be_an_array_or_a_folder(tmp_path: Path, array: Path) -> None:
    from hawq.data.unlabelled import open_unlabelled

    pixels = np.load(array)
    folder = tmp_path / "folder" / "inside"
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number}.png")
    np.savez(tmp_path / "images.npz", images=pixels)
    pil = [Image.fromarray(image) for image in pixels]
    for path in (array, tmp_path / "images.npz", folder.parent):
        as_arrays, as_images = open_unlabelled(str(path), pixels), open_unlabelled(str(path), pil)
        assert len(as_arrays) == len(as_images) == 5
        for index, image in enumerate(pixels):
            assert (np.asarray(as_arrays[index]) == image).all() and (np.asarray(as_images[index]) == image).all()
    np.save(tmp_path / "wrong.npy", pixels.astype(float))
    with pytest.raises(ValueError, match=r"float64 \(5, 32, 32, 3\): uint8"):
        open_unlabelled(str(tmp_path / "wrong.npy"), pixels)
