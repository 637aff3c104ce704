"""Runs whose bits come from measured scores: what they need is measured, kept, or asked for before any work."""

from __future__ import annotations

import numpy as np
import pytest
from networks import build, samples
from runs import files_below, finished, read_json, run_folder, run_here

from hawq.blocks import find_blocks
from hawq.curvature import DistillationLoss, Lanczos, NoCurvature
from hawq.experiment.config.build import compose_parts
from hawq.records import read_sensitivity
from hawq.scoring import kl_score
from hawq.sensitivity import Analysis, analyze


def scores_of(outputs):
    return {table.score: table for table in read_sensitivity(run_folder(outputs) / "sensitivity.json").scores}


def test_the_score_of_the_bits_is_measured_and_kept(tmp_path, capfd):
    asked = ("bits.score=kl", "analysis.scores=[quadratic,output_shift]", "stages=[analysis,allocation]")
    assert run_here(tmp_path, *asked) is None
    found = scores_of(tmp_path)
    assert {"kl", "quadratic", "output_shift", "eigenvalue", "error"} <= found.keys()
    assert found["kl"].gradient_equivalents > 0 and found["kl"].num_samples == 16
    assert read_json(run_folder(tmp_path) / "plan.json")["weighting"] == "kl"
    assert len(finished(tmp_path, "analysis")) == 4
    capfd.readouterr()
    assert run_here(tmp_path, *asked[:2], "bits.target=9", "stages=[analysis,allocation]") is None
    assert capfd.readouterr().out.count("found in the cache") == 6  # two of the float network
    assert len(finished(tmp_path, "analysis")) == 4


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("analysis.kl_temperature=1", 1),
        ("analysis.images=test", 1),
        ("analysis.scores=[kl]", 0),
        ("solver.max_iterations=3", 1),
        ("quantizer=uniform", 1),
        ("analysis.num_samples=12", 2),
        ("analysis.loss=distillation", 1),
    ],
)
def test_what_is_part_of_which_key(tmp_path_factory, changed, again):
    outputs = tmp_path_factory.getbasetemp() / "keys"
    common = ("bits.score=kl", "stages=[analysis,allocation]")
    assert run_here(outputs, *common) is None
    before = len(finished(outputs, "analysis"))
    assert run_here(outputs, *common, changed) is None
    assert len(finished(outputs, "analysis")) == before + again


def test_unlabelled_images_of_the_users_own(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    outputs = tmp_path / "outputs"
    assert run_here(outputs, "bits.score=kl", "stages=[analysis]", f"analysis.images={folder}") is None
    assert scores_of(outputs)["kl"].num_samples == 5


def test_without_curvature_only_the_score_is_measured(tmp_path, capfd):
    import runs

    arguments = [one for one in runs.TINY if not one.startswith("solver.")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "TINY", tuple(arguments))
        assert run_here(tmp_path, "solver=none", "bits.score=kl", "stages=[analysis,allocation]") is None
    assert {"kl", "error", "relative_error"} == scores_of(tmp_path).keys()
    assert read_sensitivity(run_folder(tmp_path) / "sensitivity.json").score_name() == "kl"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ("bits.score=trace",),
            "the analysis has no trace, .* give solver=trace, or bits.score=eigenvalue or bits.score=kl",
        ),
        (
            ("bits.score=kl", "bits.activations=mixed", "analysis.activations=false"),
            "bits.activations=mixed needs .* leave analysis.activations=false out",
        ),
        (
            ("bits.score=quadratic", "bits.activations=mixed"),
            "bits.score=quadratic says nothing of activations",
        ),
        (("analysis.scores=[kl,kl]",), r"analysis.scores=\['kl', 'kl'\] is out of range"),
        (("analysis.scores=[trace]",), r"analysis.scores=\['trace'\] is out of range: give some of kl"),
        (("analysis.images=nowhere",), "analysis.images=nowhere does not exist: give"),
        (("analysis.images=''",), "analysis.images is empty"),
        (("analysis.loss=hinge",), "analysis.loss='hinge' is unknown"),
        (("analysis.loss=distillation", "analysis.scores=[output_shift]"), "no gradient .* output_shift"),
        (("analysis.temperature=0",), "analysis.temperature=0.* is out of range"),
        (("validate.target=31", "stages=[analysis,validate]"), "validate.target=31 has 0 plans .* or validate.plans=0"),
        (("validate.solvers=[none]", "stages=[analysis,validate]"), "validate.solvers names none"),
    ],
)
def test_what_cannot_be_found_is_told_before_any_work(tmp_path, arguments, told):
    message = run_here(tmp_path, *arguments)
    assert message is not None
    assert pytest.importorskip("re").search(told, message), message
    assert not files_below(tmp_path / "cache")


@pytest.mark.parametrize(
    ("arguments", "analysed"),
    [
        ((), False),
        (("bits=uniform",), False),
        (("bits.activations=mixed",), True),
        (("bits=haq", "bits.activations=mixed"), True),
        (("bits.activations=mixed", "analysis.activations=false"), False),
        (("analysis.activations=true",), True),
    ],
)
def test_activations_are_analysed_where_their_bits_are_chosen(arguments, analysed):
    assert compose_parts(arguments)["analysis"].activations is analysed


def test_the_library_verb_measures_the_same():
    model, (inputs, labels) = build("residual"), samples(9)
    blocks = find_blocks(model, inputs[:1])
    found = analyze(model, blocks, [(inputs, labels)], solver=NoCurvature(), scores=("kl", "quadratic"))
    assert found.table("kl") == kl_score(model, blocks, [inputs], [inputs])
    assert found.score_name() == "kl" and {"quadratic", "error"} <= {table.score for table in found.scores}


@pytest.mark.parametrize("loss", ["distillation", DistillationLoss(4.0)])
def test_distillation_needs_no_labels(loss):
    model, (inputs, labels) = build("residual"), samples(9)
    blocks = find_blocks(model, inputs[:1])
    unlabelled = analyze(model, blocks, [inputs], loss, solver=Lanczos())
    labelled = analyze(model, blocks, iter([(inputs, labels)]), loss, solver=Lanczos())
    assert unlabelled == labelled
    assert all(row.eigenvalue.value > 0 for row in unlabelled.rows)
    with pytest.raises(ValueError, match="no gradient at the float network"):
        analyze(model, blocks, [inputs], loss, solver=NoCurvature(), scores=("output_shift",))
    with pytest.raises(ValueError, match="loss='hinge' is unknown"):
        analyze(model, blocks, [inputs], "hinge")


def test_settings_are_checked():
    assert Analysis(scores=("kl",)).loss_facts() == {}
    with pytest.raises(ValueError, match="scores="):
        Analysis(scores=("lambda",))
