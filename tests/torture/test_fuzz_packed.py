"""10,000 mutations of a packed file, seeded: each is refused in one sentence or read as exactly what it says."""

from pathlib import Path

import pytest
from fuzzing import tried
from packed_files import packed

from hawq.quantization import LSQ, Quantizer, RVQuant

MUTATIONS = 10_000


@pytest.mark.torture
@pytest.mark.parametrize(("seed", "quantizer"), [(14, RVQuant(10)), (15, LSQ())], ids=["large values", "channels"])
def test_mutations_of_a_packed_file(seed: int, quantizer: Quantizer, tmp_path: Path) -> None:
    original = packed(tmp_path / "original.safetensors", quantizer)
    figures = tried(original, tmp_path / "model.safetensors", MUTATIONS, seed)
    print(", ".join(f"{name} {count:,}" for name, count in figures.items()))
    assert figures["right"] == MUTATIONS and figures["read"] > MUTATIONS / 100
