"""What is said of releases of SGLang beside a GPU."""

import pytest

from ktd.version import release_numbers, untried_on_gpus


@pytest.mark.parametrize("release", ["0.5.17", "0.5.17.post1"])
def test_nothing_is_said_of_a_release_that_was_run_on_gpus(release):
    assert release_numbers(release) == (0, 5, 17)
    assert untried_on_gpus(release) == ""


@pytest.mark.parametrize("release", ["0.5.16", "0.5.23", "0.6.0rc1", "1"])
def test_others_are_named_with_those_that_were(release):
    assert untried_on_gpus(release) == (
        f"{release}, with which ktd was run on no GPU yet, but with 0.5.17"
    )
