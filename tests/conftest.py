"""For all tests: one thread each, and no looking for garbage while they are collected."""

import gc
import os
from collections.abc import Iterator

import pytest

from elvis import terminal

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: in the processes that tests start too, so that all of them count to the same bits
os.environ["ELVIS_TENSORBOARD"] = "0"  # its import would be paid by every process that trains
gc.disable()  # while tests are collected nothing is garbage, and to look for some takes half of that time


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(autouse=True)
def as_loud_as_ever() -> Iterator[None]:
    """A command that was told --quiet leaves the next test as it found it."""
    yield
    terminal.begin([])
