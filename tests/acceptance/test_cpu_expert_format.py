"""Experts that are quantised at load: the same answer at every placement (invariant 4)."""

import re

import pytest

from ktd.bench.servers import stock_server
from tests.acceptance.agreement import answers_of, error_of, exact_of, require_close
from tests.acceptance.conftest import TOKENS
from tests.acceptance.openai import mean_error
from tests.acceptance.placements import errors_of_placements
from tests.acceptance.quantised import quantise_experts, written
from tests.acceptance.reference import Reference
from tests.device import on_gpu
from tests.live import LiveDaemon, serve_arguments
from tests.skips import repeats

pytestmark = pytest.mark.engine

RATIOS = ("0", "0.37", "1")
# A 1/254 of a row's largest weight, and 1/14 of that of 32: between these the answers differ.
LOSS = {"int8": (0.001, 0.05), "int4": (0.05, 1.0)}


@pytest.mark.parametrize("form", ["int8", pytest.param("int4", marks=repeats)])
def test_no_placement_changes_the_answer_of_quantised_experts(
    form, model_dir, tmp_path, record_property
):
    """Slots and CPU agree with float32 over the quantised values as bf16 experts do with theirs.

    What unmodified SGLang loses is that of the same values: another model has other near ties.
    """
    pytest.importorskip("transformers", reason="Transformers is not installed here")
    quantised = Reference(model_dir, lambda model: quantise_experts(model, form))
    wanted, checkpoint = exact_of(quantised), exact_of(Reference(model_dir))
    lost = mean_error(wanted, checkpoint)
    print(f"{form}: quantising alone moves log-probabilities by {lost:.4f}")
    low, high = LOSS[form]
    assert low < lost < high
    same = tmp_path / form
    written(model_dir, same, form)
    with stock_server(same, [*TOKENS, *serve_arguments()], gpu=on_gpu()) as server:
        url = f"http://127.0.0.1:{server.endpoint.port}"
        stock_error = error_of(url, Reference(same))
    answers = {}
    for ratio in RATIOS:
        with LiveDaemon(
            "--gpu-experts-ratio", ratio, "--cpu-expert-format", form, *TOKENS
        ) as daemon:
            answers[ratio] = answers_of(daemon.http_url, quantised)
            check_that_it_is_said(daemon, form)
            error, what = mean_error(answers[ratio], wanted), f"{form} at ratio {ratio}"
            if ratio == "0.37":
                errors = errors_of_placements(daemon, quantised)
                error, what = errors.mean, f"{what}: {errors}"
        require_close(error, stock_error, record_property, what)
        away = mean_error(answers[ratio], checkpoint)
        apart = mean_error(answers[ratio], answers["0"])
        print(f"{form} at ratio {ratio}: {away:.4f} from the checkpoint, {apart:.4f} from ratio 0")


def check_that_it_is_said(daemon, form):
    """In the status, for people and programs, and in the log."""
    status = daemon.ktd_json("status")
    assert status["model"]["expert_format"] == "bf16"
    assert status["model"]["cpu_expert_format"] == form
    slots, memory = status["memory"]["total_slots"], status["memory"]
    assert memory["slot_bytes"] == slots * memory["expert_bytes"]
    assert memory["host_store_bytes"] < 0.6 * memory["total_experts"] * memory["expert_bytes"]
    told = daemon.ktd("status").stdout
    assert f"bf16 quantised to {form} at load (lossy against the checkpoint)" in told
    assert re.search(rf"--cpu-expert-format {form} is lossy against", daemon.log.read_text())
