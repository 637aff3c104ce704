"""HAWQ-V3's integer program, against its published plans and by hand."""

import itertools
import json

import pytest
from runs import REPOSITORY, read_json, run_folder, run_here, run_script
from sensitivities import full_sensitivity

from hawq.allocation import HawqV3
from hawq.records import WEIGHTS

REFERENCE = REPOSITORY.parent / "shared" / "reference" / "hawq_v3_resnet18_ilp.json"
UNITS = {"size": "bytes", "bops": "bops", "latency": "latency_ms"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The published numbers, as the script of the README writes them."""
    if not REFERENCE.is_file():
        pytest.skip("the published numbers are not beside this checkout")
    folder = tmp_path_factory.mktemp("v3")
    assert run_script("import_hawq_v3.py", REFERENCE, folder) is None
    return folder


@pytest.mark.parametrize("number", range(9))
def test_published_plan_comes_out_bit_for_bit(number, imported, tmp_path):
    """`train.py` from the file alone, without model and data."""
    published = json.loads(REFERENCE.read_text())["published"][number]
    arguments = [
        "stages=[allocation]",
        f"allocation.sensitivity={imported / 'sensitivity.json'}",
        "bits=hawq_v3",
        "bits.ends=null",
        f"bits.unit={UNITS[published['constraint']]}",
        f"bits.level={published['alpha']}",
        f"bits.latency={imported / 'latency.json'}",
    ]
    assert run_here(tmp_path, *arguments) is None
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}, "no cache, no data"
    plan = read_json(run_folder(tmp_path) / "plan.json")
    bits = [row["weight_bits"] for row in plan["precisions"].values()]
    assert bits == published["bits"] == [row["activation_bits"] for row in plan["precisions"].values()]
    assert plan["objective"] == pytest.approx(published["omega"], abs=5e-5)
    assert plan["gap"] < 1e-9 and plan["confidence"] is None
    assert plan["limits"][0]["slack"] >= 0


def test_other_files_are_not_imported(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert "does not hold HAWQ-V3's numbers" in run_script("import_hawq_v3.py", tmp_path / "other.json", tmp_path)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("unit", ["bytes", "bops"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_brute_force(seed, unit, level):
    sensitivity = full_sensitivity(seed, 5)

    def cost(bits):
        macs = 8 * 8 if unit == "bops" else 1  # both ends at 8 bits
        per_block = [(b.macs if unit == "bops" else b.num_weights) for b in sensitivity.blocks]
        middle = sum(n * b * (b if unit == "bops" else 1) for n, b in zip(per_block[1:-1], bits, strict=True))
        return middle + (per_block[0] + per_block[-1]) * (macs if unit == "bops" else 8)

    def value(bits):
        pairs = zip(sensitivity.blocks, bits, strict=True)
        return sum(sensitivity.predicted("trace", block, WEIGHTS, b).value for block, b in pairs)

    limit = cost([4] * 3) + level * (cost([8] * 3) - cost([4] * 3))
    fitting = [bits for bits in itertools.product((4, 8), repeat=3) if cost(bits) <= limit * (1 + 1e-12)]
    best = min(value((8, *bits, 8)) for bits in fitting)
    plan = HawqV3(level, unit).allocate(sensitivity)
    bits = list(plan.weight_bits().values())
    assert bits[0] == bits[-1] == 8 and cost(bits[1:-1]) <= limit * (1 + 1e-12) + 8
    assert plan.objective <= best * (1 + 1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"level": 1.5}, "level=1.5"),
        ({"unit": "w_comp"}, "'w_comp' is unknown: give bytes, bops, latency_ms"),
        ({"bit_widths": (8, 4)}, r"bit_widths=\[8, 4\]"),
        ({"bit_widths": (4, 9)}, r"bit_widths=\[4, 9\]"),
        ({"ends": 0}, "ends=0 is"),
        ({"score": "x"}, "score='x'"),
    ],
)
def test_values_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        HawqV3(**values)
