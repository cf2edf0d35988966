"""`ktd serve --host-memory mmap`: what it says of memory, and of a file that is cut off."""

import os
import shutil
import time

import pytest

from tests.acceptance.conftest import TOKENS
from tests.live import MODEL, LiveDaemon

pytestmark = pytest.mark.engine

SECONDS = 300


def wait_for(daemon, phase, sentence):
    """Waits until the engine is in a phase with such a sentence."""
    deadline = time.monotonic() + SECONDS
    while True:
        status = daemon.ktd_json("status")
        if status["phase"] == phase and sentence in status["message"]:
            return status["message"]
        assert time.monotonic() < deadline, f"{status['phase']}: {status['message']}"
        time.sleep(0.5)


def test_mapped_experts_are_said_and_a_damaged_file_is_named_twice(tmp_path):
    """By the engine that dies of it, in the log, and by the start after it, which is the last."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    # Some experts have to be read after the file was cut off.
    few = ("--gpu-experts-ratio", "0.25")
    with LiveDaemon("--host-memory", "mmap", *few, *TOKENS, model=model) as daemon:
        memory = daemon.ktd_json("status")["memory"]
        assert memory["host_memory"] == "mmap"
        assert memory["host_copied_bytes"] == 0
        assert memory["host_store_bytes"] == memory["total_experts"] * memory["expert_bytes"]
        told = daemon.ktd("status").stdout
        assert "18.0 MiB of experts mapped from the checkpoint's files (mmap), " in told
        assert "of experts are used from the page cache" in daemon.ktd("placement", "fit").stdout

        body = {"model": str(model), "prompt": "once", "max_tokens": 4}
        assert daemon.post("/v1/completions", body)["choices"]
        os.truncate(model / "model.safetensors", 9000)
        with pytest.raises((AssertionError, OSError)):
            daemon.post("/v1/completions", body | {"prompt": "another story"})
        said = wait_for(daemon, "FAILED", "model.safetensors")
        assert f"{model}/model.safetensors is truncated: it has 9,000 bytes" in said
        assert (
            "became shorter, or its disk failed, while experts were used" in daemon.log.read_text()
        )
