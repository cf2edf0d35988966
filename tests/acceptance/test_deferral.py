"""Experts that are a layer late change what a whole model says as they should, and nothing else."""

import pytest

from tests.acceptance.agreement import CEILING, DECODE_FACTOR, answers_of, exact_of
from tests.acceptance.conftest import TOKENS
from tests.acceptance.late_experts import LateReference
from tests.acceptance.openai import decoded, mean_error
from tests.acceptance.reference import TEXTS, WINDOWS
from tests.live import LiveDaemon
from tests.skips import needs_gpu

pytestmark = pytest.mark.engine
LATE, PROMPT, DECODED = 2, 40, 64


@pytest.fixture(scope="module")
def late(model_dir):
    return LateReference(model_dir, LATE)


@pytest.fixture(scope="module")
def rounded(model_dir):
    """The same in bfloat16."""
    return LateReference(model_dir, LATE, dtype="bfloat16")


def prompts_of(reference):
    """Fifteen: rounding alone moves 64 tokens behind one by 0.008, and behind another by 0.034."""
    return [reference.text(name, n)[:PROMPT] for name in TEXTS for n in range(WINDOWS)]


def test_the_reference_is_the_model_where_nothing_is_late(model_dir, reference, late):
    """Token by token as in one pass; and what is late is far more than rounding."""
    prompt = prompts_of(reference)[0]
    ids = reference.text(TEXTS[0])[PROMPT : PROMPT + 16]
    exact = reference.logprobs(prompt + ids)[-len(ids) :]
    assert mean_error(LateReference(model_dir, 0).decoded(prompt, ids), exact) < 1e-4
    changed = late.decoded(prompt, ids)
    assert changed[0] == pytest.approx(exact[0], abs=1e-4), "a prompt has nothing late"
    assert mean_error(changed, exact) > 2 * CEILING


@needs_gpu
def test_decoded_tokens_get_their_experts_late_and_prompts_do_not(reference, late, rounded):
    """In graphs, with no expert in a slot; `ktd status` says that answers change.

    The bar is what bfloat16 does to the reference: which experts are the last two of four decides
    between near-ties that mean nothing where none is late.
    """
    options = ("--max-deferred-experts-per-token", str(LATE), "--gpu-experts-ratio", "0")
    with LiveDaemon(*options, *TOKENS) as daemon:
        answers = [decoded(daemon.http_url, prompt, DECODED) for prompt in prompts_of(reference)]
        of_prompts = mean_error(answers_of(daemon.http_url, reference), exact_of(reference))
        status = daemon.ktd("status")
    errors, rounding, others = [], [], []
    for prompt, (ids, values) in zip(prompts_of(reference), answers, strict=True):
        exact = late.decoded(prompt, ids)
        errors.append(mean_error(values, exact))
        rounding.append(mean_error(rounded.decoded(prompt, ids), exact))
        others.append(mean_error(values, reference.logprobs(prompt + ids)[-DECODED:]))
    error, bfloat16, without = (sum(found) / len(found) for found in (errors, rounding, others))
    print(f"decoded {error:.4f}, Transformers in bfloat16 {bfloat16:.4f}, prompts {of_prompts:.4f}")
    print(f"decoded, from a model without {without:.4f}")
    assert error <= DECODE_FACTOR * bfloat16
    assert without > 2 * error
    assert of_prompts <= CEILING
    assert "EXPERTS_DEFERRED" in status.stdout
