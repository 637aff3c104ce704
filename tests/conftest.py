"""Settings that every test shares."""

import functools
from collections.abc import Iterator

import pytest
import torch

LONGEST = ("test_pipeline.py", "test_kill_and_resume.py", "test_processes.py", "test_bad_input.py", "test_papers.py")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # the networks are tiny: on a busy machine a second thread makes them six times slower


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin, so that no process of several is left with one of them in the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def operators_read_once() -> Iterator[None]:
    """PyTorch parses the source of its exporter's 500 operators for each graph; in tests once for each opset."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield
