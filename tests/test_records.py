"""Records survive JSON, and refuse what is not theirs by name."""

import dataclasses
import json
import math

import pytest

from hawq import records
from hawq.errors import UserError
from hawq.records import (
    SENSITIVITY_SCHEMA,
    BitPlan,
    Block,
    BlockSensitivity,
    Confidence,
    Correlation,
    Cost,
    Difference,
    Estimate,
    FloatPart,
    Judgement,
    LimitUse,
    LossIncrease,
    LossIncreases,
    Measured,
    Normalization,
    Phase,
    PlanCorrelation,
    PlanOutcome,
    PlanScore,
    Precision,
    Prediction,
    Preprocessing,
    ResultRow,
    RunReport,
    Score,
    ScoreTable,
    Searched,
    Sensitivity,
    StageRecord,
    Validated,
    ValidatedPlans,
    dump_record,
    from_dict,
    read_record,
    read_sensitivity,
    to_dict,
)

BLOCK = Block("layer1.0", ("layer1.0.conv1", "layer1.0.conv2"), 4608, 471, 32, ("layer1.0.conv1",), "t", 8)
ESTIMATE = Estimate(29.5, 0.48, 6, True)
ROW = BlockSensitivity(BLOCK, ESTIMATE, {2: 12.25, 8: 0.003}, Estimate(-1.5, 0.1, 30, False), ESTIMATE, {4: 2.5})
OTHER = dataclasses.replace(ROW, block=Block("fc", ("fc",), 10))
COST = Cost(10, 5, 4.0, 8.0, 7.5, 1200, 77, 12.5)
USE = LimitUse("bops", 1300.0, 1200.0, 100.0)
CONFIDENCE = Confidence(10, {"a": {"8/32": 7, "7/32": 3}}, False)
DIFFERENCE = Difference(-0.5, -1.5, 0.25, 360)
JUDGED = Judgement("KL on 400 images", 400, 0.1, 0.125, 0.025, 0.003)
OTHERS = Judgement("KL on 1000 other images", 1000, 0.11, 0.12, 0.01, 0.004)
SEARCHED = Searched("refinement", 94, 2, JUDGED, OTHERS)
PLAN = BitPlan(
    {"b": Precision(3, 4), "a": Precision(8, 32)}, "HAWQ", COST, 0.25, 0.0, "trace", (USE,), CONFIDENCE, SEARCHED
)
RESULT = ResultRow("HAWQ", "2-8", "4", 92.1, 13.1, 81888, 8.0, 0.079, 360, DIFFERENCE)
STAGE = StageRecord("analysis", "0123abcd", False, 1.5, None)
REPORT = RunReport(
    (RESULT,),
    (STAGE,),
    PLAN,
    {"a": {"b": [1, None, "x"]}},
    {"torch": "2"},
    None,
    "train.py",
    3.0,
    {"p": "q"},
    (FloatPart("w", 3),),
    DIFFERENCE,
)
INCREASE = LossIncrease("b", "weights", 2, 0.1, 0.01, 1.5, 0.2)
TRUTH = LossIncreases(9, 0.2, 99.0, (INCREASE, INCREASE))
SCORE = Score("trace", "weights", "trace", {"b": {2: 1.5, 4: 0.5}}, 2.5, None)
CORRELATION = Correlation("trace", "weights", None, 6, 0.5, (0.1, 0.9), None, None)
OUTCOME = PlanOutcome({"a": "4", "b": "2/8"}, 8.0, 0.1, 0.01, -0.1, 0.02, 1.5, 0.3)
PLAN_SCORE = PlanScore("trace", "solver=trace bits.score=trace", (1.5,))
PLAN_CORRELATION = PlanCorrelation("trace", "kl", 40, 0.5, (0.1, 0.9), -0.1, (-0.2, 0.1), None, None)
PLANS = ValidatedPlans(8.0, 390, 500, 0.2, 94.0, (OUTCOME,), (PLAN_SCORE,), (PLAN_CORRELATION,))
BARE = [
    Block("a", ("a",), 1),
    BlockSensitivity(BLOCK, ESTIMATE, {}),
    BlockSensitivity(BLOCK, None, {}, proxy=ESTIMATE),
    BitPlan({}, "m", Cost(1, 1, 8.0, 4.0, None, None)),
]
FULL = [
    *(BLOCK, ESTIMATE, ROW, Sensitivity((ROW, OTHER), "power", 256, 1.5, 9), Normalization((0.4, 0.5), (0.2, 0.25))),
    *(Precision(2, 32), COST, USE, CONFIDENCE, PLAN, Phase(("a",), ("a", "b"), 7, 0.02, 0.0), RESULT, STAGE, REPORT),
    *(DIFFERENCE, Measured(95.0, 20, (3,)), FloatPart("attn", 0, 12), Preprocessing(224, 0.875, "bicubic")),
    *(JUDGED, SEARCHED),
    *(Prediction(-0.5, 0.25), ScoreTable("kl", {"a": {2: Prediction(1.0)}}, {}, {"a": Prediction(2.0)}, False)),
    *(INCREASE, TRUTH, SCORE, CORRELATION, Validated(TRUTH, (SCORE,), (CORRELATION, CORRELATION), (PLANS,))),
    *(OUTCOME, PLAN_SCORE, PLAN_CORRELATION, PLANS),
]


def named(values):
    return pytest.mark.parametrize("record", values, ids=lambda record: type(record).__name__)


@named(FULL + BARE)
def test_round_trip(record):
    stored = json.loads(json.dumps(to_dict(record), allow_nan=False))
    assert from_dict(stored, type(record)) == record


def test_every_record_is_tried():
    known = {value for value in vars(records).values() if isinstance(value, type) and dataclasses.is_dataclass(value)}
    assert {type(record) for record in FULL} == known


@named(FULL)
def test_missing_field_is_named(record):
    stored = to_dict(record)
    first = dataclasses.fields(record)[0].name
    del stored[first]
    with pytest.raises(ValueError, match=f"{type(record).__name__}.*{first}"):
        from_dict(stored, type(record))


@named(FULL)
def test_unknown_field_is_named(record):
    with pytest.raises(ValueError, match=f"{type(record).__name__}.*colour"):
        from_dict(to_dict(record) | {"colour": "red"}, type(record))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan"])
@pytest.mark.parametrize(
    ("record", "change"),
    [
        (ESTIMATE, lambda value: {"error": value}),
        (ROW, lambda value: {"weight_errors": {"2": value}}),
        (COST, lambda value: {"a_comp": value}),
        (PLAN, lambda value: {"gap": value}),
        (Normalization((0.5,), (0.2,)), lambda value: {"std": [value]}),
    ],
    ids=["error", "weight_errors", "a_comp", "gap", "std"],
)
def test_non_finite_numbers_are_refused(record, change, value):
    changed = change(value)
    with pytest.raises(ValueError, match=next(iter(changed))):
        from_dict(to_dict(record) | changed, type(record))


@pytest.mark.parametrize("data", [None, 3, [], "text", {"name": "a"}])
def test_other_json_is_refused(data):
    with pytest.raises(ValueError, match="not a Block"):
        from_dict(data, Block)


@pytest.mark.parametrize(("value", "positive"), [(29.5, 29.5), (-3.0, 0.0)])
def test_scores_of_an_analysis_by_their_formulas(value, positive):
    estimate = Estimate(value, 0.5, 1, True)
    row = dataclasses.replace(ROW, eigenvalue=estimate, trace=estimate, activation_trace=estimate)
    found = Sensitivity((row,), "power", 1, 0.0)
    expected = {  # of the weights at 2 bits, their error, of the activations at 4 bits, S
        "eigenvalue": (positive * 12.25, 0.5 * 12.25, positive / 32 * 2.5, positive / 4608),
        "trace": (positive / 4608 * 12.25, 0.5 / 4608 * 12.25, positive / 32 * 2.5, positive / 4608),
        "error": (12.25, 0.0, 2.5, 1 / 4608),
    }
    assert [table.score for table in found.scores] == list(expected)
    for score, (weights, spread, activations, rank) in expected.items():
        of_weights = found.predicted(score, BLOCK, "weights", 2)
        assert (of_weights.value, of_weights.error) == pytest.approx((weights, spread))
        assert found.predicted(score, BLOCK, "activations", 4).value == pytest.approx(activations)
        assert found.rank(score, BLOCK) == pytest.approx(rank)
        assert (
            found.measured(score, BLOCK, "weights", 2).value
            == pytest.approx(
                value / positive * weights if positive else 12.25 * value / (1 if score == "eigenvalue" else 4608)
            )
            or score == "error"
        )
        for kind, bits in (("weights", "2, 8"), ("activations", "4")):
            assert found.predicted(score, BLOCK, kind, 32) == Prediction(0.0, 0.0)
            with pytest.raises(ValueError, match=rf"no {score} of its {kind} for 3 bits: give .*candidates=\[{bits}\]"):
                found.predicted(score, BLOCK, kind, 3)


def test_a_block_that_reads_the_image_alone_has_no_activations():
    block = dataclasses.replace(BLOCK, num_activations=0)
    assert Sensitivity((), "power", 1, 0.0).predicted("trace", block, "activations", 4) == Prediction(0.0)


def test_what_was_not_analysed_is_asked_for():
    row, traced = (
        BlockSensitivity(BLOCK, None, {4: 1.0}, proxy=ESTIMATE),
        BlockSensitivity(BLOCK, None, {4: 1.0}, ESTIMATE),
    )
    other = dataclasses.replace(ROW, block=dataclasses.replace(BLOCK, name="other"))
    found = Sensitivity((row,), "power", 1, 0.0)
    for score in ("eigenvalue", "trace", "kl"):
        with pytest.raises(
            ValueError, match=rf"has no {score}: give score=proxy or error, or run an analysis that finds"
        ):
            found.predicted(score, BLOCK, "weights", 4)
    with pytest.raises(ValueError, match=r"block 'layer1.0' has no eigenvalue: give score=trace or error"):
        Sensitivity((traced, other), "power", 1, 0.0).predicted("eigenvalue", BLOCK, "weights", 4)
    with pytest.raises(ValueError, match=r"'layer1.0' lacks: run the analysis with analysis.activations=true"):
        found.predicted("proxy", BLOCK, "activations", 4)
    names = {"eigenvalue": (ROW, other), "trace": (traced, other), "proxy": (row,)}
    names |= {"error": (BlockSensitivity(BLOCK, None, {4: 1.0}),)}
    for name, rows in names.items():
        assert Sensitivity(rows, "power", 1, 0.0).score_name() == name
    assert Sensitivity((traced,), "power", 1, 0.0).score_name("eigenvalue") == "eigenvalue"
    assert Sensitivity((traced,), "power", 1, 0.0).score_name("none") == "error"


GIVEN = ScoreTable("given", {"layer1.0": {2: Prediction(0.5, 0.1), 4: Prediction(-0.1, 0.2)}}, one_factor=False)


def test_a_table_from_elsewhere_stands_beside_what_follows_from_the_rows():
    found = Sensitivity((ROW,), "power", 1, 0.0, scores=(GIVEN,))
    assert [table.score for table in found.scores] == ["given", "eigenvalue", "trace", "error"]
    assert found.predicted("given", BLOCK, "weights", 2) == Prediction(0.5, 0.1)
    assert found.predicted("given", BLOCK, "weights", 4) == Prediction(0.0, 0.2)
    assert found.measured("given", BLOCK, "weights", 4) == Prediction(-0.1, 0.2)
    assert found.rank("given", BLOCK) == 0.5 / 4608
    changed = found.with_rows([dataclasses.replace(ROW, eigenvalue=None)])
    assert [table.score for table in changed.scores] == ["trace", "error"]
    assert from_dict(json.loads(json.dumps(to_dict(found))), Sensitivity) == found


def test_files_of_the_former_schema_are_read(tmp_path):
    found = Sensitivity((ROW, OTHER), "power", 256, 1.5, 9)
    old = {key: value for key, value in to_dict(found).items() if key != "scores"}
    (tmp_path / "s.json").write_text(json.dumps({"schema": "hawq.sensitivity/2", **old}))
    assert read_sensitivity(tmp_path / "s.json") == found
    (tmp_path / "s.json").write_bytes(dump_record(SENSITIVITY_SCHEMA, found))
    assert read_sensitivity(tmp_path / "s.json") == found and SENSITIVITY_SCHEMA == "hawq.sensitivity/3"


@pytest.mark.parametrize(("weighting", "score"), [("eigenvalue", "eigenvalue"), ("none", "error")])
def test_the_score_of_an_old_plan_has_its_present_name(weighting, score):
    assert dataclasses.replace(PLAN, weighting=weighting).score == score


@pytest.mark.parametrize(
    ("confidence", "text"),
    [
        (CONFIDENCE, "bit-widths in 10 draws of the score ± its error: a 8/32 (7×), 7/32 (3×); the others stay"),
        (Confidence(4, {}), "no bit-width changes in 4 draws of the score ± its error"),
    ],
)
def test_confidence_reads_well(confidence, text):
    assert str(confidence) == text


@pytest.mark.parametrize(
    ("searched", "text"),
    [
        (
            SEARCHED,
            (
                f"refinement, 94 plans measured: 0.125 → 0.1, gain 0.025 ± 0.003 ({JUDGED.about}); "
                f"on other images {OTHERS}"
            ),
        ),
        (
            Searched("refinement", 30, 0, Judgement("KL on 9 images", 9, 0.1, 0.1, 0.0, 0.0)),
            "refinement, 30 plans measured: nothing to gain, the plan stays; 0.1 → 0.1, gain 0 ± 0 (KL on 9 images)",
        ),
        (
            Searched("HAQ", 30, 0, Judgement("KL on 9 images", 9, 0.1)),
            "HAQ, 30 plans measured: 0.1 (KL on 9 images)",
        ),
    ],
)
def test_what_a_search_found_reads_well(searched, text):
    assert str(searched) == text


FILE = {"schema": SENSITIVITY_SCHEMA, **to_dict(Sensitivity((ROW, OTHER), "power", 256, 1.5, 9))}
WRONG = {  # path of an entry, what stands there, what is said of it
    "negative count": ("rows/0/block/num_weights", -3, r"rows\[0\].block.num_weights=-3 is not allowed .give 1 to"),
    "no weights": ("rows/0/block/num_weights", 0, "num_weights=0 is not allowed .give 1 to 1e.12"),
    "fraction": ("rows/1/block/macs", 1.5, r"rows\[1\].block.macs=1.5 is not allowed .give a whole number"),
    "whole fraction": ("num_samples", 4.0, "num_samples=4.0 is not allowed .give a whole number"),
    "true as a count": ("num_samples", True, "num_samples=True is not allowed .give a whole number"),
    "text as a number": ("loss", "1.5", "loss='1.5' is not allowed .give a number"),
    "null": ("rows/0/eigenvalue/value", None, r"rows\[0\].eigenvalue.value=None is not allowed .give a number"),
    "huge": ("rows/0/eigenvalue/value", 1e308, r"eigenvalue.value=1e\+308 is not allowed .give -1e\+60 to 1e\+60"),
    "huger": ("loss", 10**400, "loss=a number of more than 20 digits is not allowed"),
    "negative error": ("rows/0/weight_errors/2", -1.0, r"weight_errors\['2'\]=-1.0 is not allowed .give 0 to"),
    "bits of an error": (
        "rows/0/weight_errors/9",
        1.0,
        r"weight_errors\['9'\]='9' is not allowed .give bit-widths from",
    ),
    "spelling": ("rows/0/weight_errors/04", 1.0, r"weight_errors\['04'\]='04' is not allowed"),
    "fixed bits": ("rows/0/block/fixed_bits", 9, "fixed_bits=9 is not allowed .give 1, 2, 3, 4, 5, 6, 7, 8, 32"),
    "empty name": ("rows/1/block/name", "", "name='' is not allowed .give 1 to 250 printable characters"),
    "long name": ("rows/1/block/name", "x" * 251, "block.name='x.*' is not allowed .give 1 to 250 printable"),
    "name of two lines": ("rows/1/block/name", "a\nb", "printable"),
    "name twice": ("rows/1/block/name", "layer1.0", "blocks layer1.0 are listed more than once"),
    "text for a list": ("rows/0/block/layers", "abc", "layers='abc' is not allowed .give a list"),
    "mapping for a list": ("rows", {"a": 1}, r"rows=\{'a': 1\} is not allowed .give a list"),
    "list for a mapping": ("rows/0/block", [1], r"block=\[1\] is not allowed .give a mapping"),
    "number for a mapping": ("rows/0/weight_errors", 3, "weight_errors.* is not allowed .give a mapping"),
    "unknown": ("rows/0/colour", "red", r"rows\[0\] has unknown entries 'colour'"),
    "score twice": ("scores/1/score", "eigenvalue", "the scores eigenvalue are listed more than once"),
    "score of no block": (
        "scores/0/weights/stem",
        {"2": {"value": 1.0}},
        "score eigenvalue names unknown blocks ..stem",
    ),
    "prediction": (
        "scores/0/weights/fc/2",
        1.0,
        r"scores\[0\].weights\['fc'\]\['2'\]=1.0 is not allowed .give a mapping",
    ),
    "schema": ("schema", "hawq.plan/1", "its schema is 'hawq.plan/1', this version reads"),
    "no schema": ("schema", None, "its schema is None"),
}


def put(content, path, value):
    *above, last = path.split("/")
    node = content
    for key in above:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value


@pytest.mark.parametrize(("path", "value", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_entry_of_a_file_is_told_with_what_is_allowed(path, value, message, tmp_path):
    content = json.loads(json.dumps(FILE))
    put(content, path, value)
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        read_record(tmp_path / "s.json", SENSITIVITY_SCHEMA, Sensitivity)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 's.json'} cannot be used: ") and len(said.splitlines()) == 1


def with_loss(text):
    return json.dumps(FILE).replace('"loss": 1.5', f'"loss": {text}')


TEXTS = {
    "empty": ("", "Expecting value"),
    "half": (json.dumps(FILE)[:100], "line 1"),
    "list": ("[]", "it holds no JSON mapping"),
    "key twice": (json.dumps(FILE).replace('"loss": 1.5', '"loss": 1.5, "loss": 2.5'), "key 'loss' occurs twice"),
    "NaN": (with_loss("NaN"), "NaN, which is not a finite number"),
    "infinity": (with_loss("-Infinity"), "-Infinity, which is not a finite"),
    "beyond": (
        json.dumps(FILE).replace('"loss": 1.5', '"loss": 1e400'),
        "loss=inf is not allowed .give a finite number",
    ),
    "digits": (json.dumps(FILE).replace('"loss": 1.5', f'"loss": {"9" * 5000}'), "digits"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "bytes": (b"\xff\xfe{}", "utf-8"),
    "large": (" " * (32 * 2**20 + 1), "larger than 32 MiB"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_a_file_of_something_else_is_told(text, message, tmp_path):
    (tmp_path / "s.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_record(tmp_path / "s.json", SENSITIVITY_SCHEMA, Sensitivity)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match=r"absent.json does not exist"):
        read_record(tmp_path / "absent.json", SENSITIVITY_SCHEMA, Sensitivity)


def test_many_wrong_entries_are_counted():
    with pytest.raises(ValueError, match=r"give a whole number\); .*; .*; and 4 more$"):
        names = ("average_bits", "w_comp", "a_comp", "bops", "weight_bytes", "num_weights", "x")
        from_dict(dict.fromkeys(names, "?"), Cost)
