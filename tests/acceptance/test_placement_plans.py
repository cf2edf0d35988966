"""Plans, a restart with other slots, and fit, through a real daemon and engine."""

from __future__ import annotations

import pytest

from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import mean_error, prompt_logprobs
from tests.device import on_gpu
from tests.live import ROOT, LiveDaemon

pytestmark = pytest.mark.engine

# Mean difference of log-probabilities; each may differ half of it from float32 (test_logprobs.py).
LARGEST_DIFFERENCE = 0.07
PROMPT = "In the beginning God created the heaven and the earth. And the earth was"


def generate(daemon: LiveDaemon, tokens: int) -> str:
    body = {"model": "default", "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    body["ignore_eos"] = True
    return str(daemon.post("/v1/completions", body)["choices"][0]["text"])


def logprobs(daemon: LiveDaemon) -> list[float]:
    """Of 300 tokens of a text."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    tokenizer = tokenizers.Tokenizer.from_file(str(ROOT / "models/ktd-tiny/tokenizer.json"))
    text = (ROOT / "models/text/prose.txt").read_text()[:4000]
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:300]
    return prompt_logprobs(daemon.http_url, ids)


def slots_of(daemon: LiveDaemon) -> list[int]:
    return [layer["slots"] for layer in daemon.ktd_json("placement", "get")["layers"]]


def test_plan_restart_and_fit_on_a_live_engine() -> None:
    """Speed is predicted from measured steps; a restart keeps answers; the next daemon restores.

    One test, as an engine takes half a minute to start: plan, apply, undo, fit, restart, restore.
    """
    # On a GPU everything fits. Not by a flag: that would beat the placement that was stored.
    quarter = {"KTD_GPU_EXPERTS_RATIO": "0.25"} if on_gpu() else {}
    with LiveDaemon("--served-model-name", "default", *TOKENS, env=quarter) as daemon:
        fit = daemon.ktd_json("placement", "fit")
        assert sum(slots_of(daemon)) == 48
        assert fit["slots"] == (192 if on_gpu() else 48)
        answer = logprobs(daemon)
        # A step is measured between two readings, a second apart, of one request that decodes.
        generate(daemon, 3000 if on_gpu() else 400)
        plan = daemon.ktd_json("placement", "plan", "--strategy", "frequency")
        assert plan["moves"]
        assert plan["after"]["hit_rate"] > plan["before"]["hit_rate"] > 0
        assert plan["before"]["tokens_per_second"] > 0
        assert not any("other_step_seconds" in note for note in plan["notes"])
        offer = [layer["slots"] for layer in plan["restart"]["layers"]]
        assert sum(offer) == 48
        assert offer != slots_of(daemon)

        applied = daemon.ktd_json("placement", "apply", "--plan", plan["plan"])
        assert applied["moves"] == plan["moves"]
        assert daemon.ktd("placement", "apply", "--plan", plan["plan"]).returncode != 0
        assert mean_error(logprobs(daemon), answer) < LARGEST_DIFFERENCE
        after = daemon.ktd_json("placement", "plan", "--strategy", "uniform")
        assert not any("link_bytes_per_second" in note for note in after["notes"])
        daemon.ktd_json("placement", "undo", "--yes")

        stale = daemon.ktd_json("placement", "plan", "--strategy", "frequency")
        daemon.ktd_json("placement", "apply", "--strategy", "random", "--yes")
        refused = daemon.ktd("placement", "apply", "--plan", stale["plan"])
        assert refused.returncode == 5, refused.stderr

        restart = ("placement", "apply", "--strategy", "frequency", "--restart", "--yes")
        restarted = daemon.ktd(*restart, "--drain", "5", timeout=300)
        assert restarted.returncode == 0, restarted.stderr
        placement = daemon.ktd_json("placement", "get")
        slots = [layer["slots"] for layer in placement["layers"]]
        assert sum(slots) == 48
        assert len(set(slots)) > 1
        history = daemon.ktd_json("placement", "history")["entries"]
        assert history[0]["origin"] == "frequency"
        assert history[0]["actor"].startswith("uid=")
        assert mean_error(logprobs(daemon), answer) < LARGEST_DIFFERENCE

        daemon.stop()
        daemon.start()
        restored = daemon.ktd_json("placement", "get")
        assert restored["layers"] == placement["layers"]
        assert restored["revision"] == placement["revision"]
