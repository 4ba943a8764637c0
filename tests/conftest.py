"""While tests are collected nothing is garbage, and to look for some takes half of that time."""

import gc

gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
