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
