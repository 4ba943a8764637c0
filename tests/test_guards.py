"""The guards: each stands once in the product, its test exists, docs/reliability.md shows it. To break them: python -m tests.guards"""

from __future__ import annotations

import pytest

from tests import guards
from tests.guards import GUARDS, ROOT, Guard


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.what)
def test_a_guard_stands_once_and_its_test_exists(guard: Guard) -> None:
    assert (ROOT / guard.file).read_text().count(guard.old) == 1
    assert guard.old != guard.new
    file, _, test = guard.test.partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text()


def test_every_promise_has_guards_and_the_page_lists_them() -> None:
    assert {guard.promise for guard in GUARDS} == {"R1", "R2", "R3", "R4", "R5", "R6", "R7", "I", "N"}
    assert guards.table() in (ROOT / "docs" / "reliability.md").read_text()
