"""While tests are collected nothing is garbage, and to look for some takes half of that time."""

import gc

gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays: it need not be looked through again
    gc.enable()
