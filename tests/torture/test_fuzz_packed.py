"""10,000 mutations of a packed file, seeded: each is refused in one sentence or read as exactly what it says."""

from pathlib import Path

import pytest
from fuzzing import tried
from packed_files import packed

MUTATIONS = 10_000


@pytest.mark.torture
def test_mutations_of_a_packed_file(tmp_path: Path) -> None:
    original = packed(tmp_path / "original.safetensors")
    figures = tried(original, tmp_path / "model.safetensors", MUTATIONS, seed=14)
    print(", ".join(f"{name} {count:,}" for name, count in figures.items()))
    assert figures["right"] == MUTATIONS and figures["read"] > MUTATIONS / 100
