"""SGLang is imported under ktd's platform; without SGLang these tests are not collected."""

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("sglang") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def ktd_platform():
    """Without a GPU, SGLang needs ktd's platform even to be imported."""
    if not Path("/dev/nvidia0").exists():
        os.environ["SGLANG_PLATFORM"] = "ktd"
    os.environ["SGLANG_PLUGINS"] = "ktd"


@pytest.fixture
def table():
    """SGLang's table of configurations, as it was afterwards."""
    from sglang.srt.layers.quantization import QUANTIZATION_METHODS

    before = dict(QUANTIZATION_METHODS)
    yield QUANTIZATION_METHODS
    QUANTIZATION_METHODS.clear()
    QUANTIZATION_METHODS.update(before)
