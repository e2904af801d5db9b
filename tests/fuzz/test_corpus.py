"""Every input that a fuzzer has kept, whether it reached new code or found a defect."""

import pytest

from tests.fuzz import kept
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_inputs_that_were_kept_are_read_or_refused(target: str) -> None:
    inputs = kept.read(target)
    assert len(inputs) > 5
    for data in inputs:
        TARGETS[target](data)
