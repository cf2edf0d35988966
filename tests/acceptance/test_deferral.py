"""Experts that are a layer late change what a whole model says as they should, and nothing else."""

import pytest

from tests.acceptance.agreement import CEILING, DECODE_FACTOR, answers_of, decode_error_of, exact_of
from tests.acceptance.conftest import TOKENS
from tests.acceptance.late_experts import LateReference
from tests.acceptance.openai import decoded, mean_error
from tests.acceptance.reference import TEXTS
from tests.live import LiveDaemon
from tests.skips import needs_gpu

pytestmark = pytest.mark.engine
LATE, PROMPT, DECODED = 2, 40, 64


@pytest.fixture(scope="module")
def late(model_dir):
    return LateReference(model_dir, LATE)


def prompts_of(reference):
    return [reference.text(name)[:PROMPT] for name in TEXTS]


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
def test_decoded_tokens_get_their_experts_late_and_prompts_do_not(reference, late, stock_url):
    """In graphs, with no expert in a slot; `ktd status` says that answers change."""
    options = ("--max-deferred-experts-per-token", str(LATE), "--gpu-experts-ratio", "0")
    with LiveDaemon(*options, *TOKENS) as daemon:
        errors, others = [], []
        for prompt in prompts_of(reference):
            ids, values = decoded(daemon.http_url, prompt, DECODED)
            errors.append(mean_error(values, late.decoded(prompt, ids)))
            others.append(mean_error(values, reference.logprobs(prompt + ids)[-DECODED:]))
        of_prompts = mean_error(answers_of(daemon.http_url, reference), exact_of(reference))
        status = daemon.ktd("status")
    error, without, stock = (
        sum(errors) / len(errors),
        sum(others) / len(others),
        decode_error_of(stock_url, reference),
    )
    print(f"decoded {error:.4f} ({without:.4f} from a model without), SGLang {stock:.4f}")
    print(f"prompts {of_prompts:.4f}")
    assert error <= DECODE_FACTOR * stock
    assert without > 2 * error
    assert of_prompts <= CEILING
    assert "EXPERTS_DEFERRED" in status.stdout
