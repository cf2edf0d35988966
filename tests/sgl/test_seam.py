"""What the plugin says when a scheduler's start fails, and which layers it takes."""

from types import SimpleNamespace

import pytest

from ktd.enginespec import EngineSpec, read_failure
from ktd.sgl.seam import SchedulerHooks, _decode_rows, _explain
from tests.live import MODEL


@pytest.fixture
def spec(tmp_path):
    return EngineSpec(
        engine_id="t-1",
        runtime_dir=str(tmp_path),
        model_path="/nowhere",
        sglang_args=(),
        device="cpu",
        moe_layers=(1, 3),
        num_experts=4,
        experts_per_token=1,
        slots=(2, 2),
        initial=((), ()),
    )


def bare_assertion():
    assert 1 == 2  # noqa: PLR0133 # an assertion without words, as SGLang has them


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("a\n  b"), "usage", "SGLang refused to start: a b"),
        (MemoryError(), "memory", "the engine ran out of memory while starting: MemoryError"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            "memory",
            "ran out of memory while starting: DefaultCPUAllocator",
        ),
        (
            RuntimeError("Not enough memory. Please try to increase --mem-fraction-static."),
            "memory",
            "Not enough memory. Please",
        ),
        (KeyError("x"), "internal", "SGLang's scheduler failed while starting: KeyError: 'x'"),
    ],
)
def test_an_exception_becomes_one_sentence_of_the_right_kind(error, kind, words):
    """Only an internal failure is tried again."""
    found, sentence = _explain(error)
    assert found == kind
    assert words in sentence
    assert "\n" not in sentence


def test_an_exception_without_words_says_where_it_was_raised():
    """A bare assertion in SGLang would otherwise tell nothing."""
    with pytest.raises(AssertionError) as raised:
        bare_assertion()
    raised.value.args = ()
    kind, sentence = _explain(raised.value)
    assert kind == "usage"
    assert "AssertionError in bare_assertion (test_seam.py:" in sentence


def test_a_library_that_puts_a_traceback_into_its_message_is_cut():
    """One sentence fits a screen."""
    assert len(_explain(RuntimeError("x" * 10_000))[1]) < 700


def test_the_first_sentence_that_a_process_leaves_is_the_one_that_counts(spec, tmp_path):
    """A refusal of ours is raised through SGLang, which must not rename it."""
    hooks = SchedulerHooks(spec)

    def start():
        hooks.layer_configuration(None, layer_idx=2)

    with pytest.raises(ValueError, match="experts in layer 2"):
        hooks.around_init(start)
    failure = read_failure(tmp_path)
    assert failure.kind == "model"
    assert failure.message.startswith("SGLang's class for this model has experts in layer 2")


def test_layers_of_the_spec_are_taken_by_their_index(spec):
    """A configuration that is not None makes SGLang wrap its method."""
    hooks = SchedulerHooks(spec)
    assert [hooks.layer_configuration(None, layer_idx=layer) for layer in (1, 3)] == [1, 3]


@pytest.mark.parametrize("words", [(), ("--enable-deterministic-inference",)])
def test_where_answers_must_not_vary_the_cpu_has_no_share_of_long_prefills(words, spec):
    """As SGLang has read its command line."""
    server_args = pytest.importorskip("sglang.srt.server_args")
    args = server_args.prepare_server_args(["--model-path", str(MODEL), "--device", "cpu", *words])
    hooks = SchedulerHooks(spec)
    assert hooks._spec.prefill_cpu_share
    hooks.layer_configuration(args, layer_idx=1)
    assert hooks._spec.prefill_cpu_share == (not words)


@pytest.mark.parametrize(
    ("mode", "lengths", "rows"),
    [
        ("DECODE", None, None),
        ("EXTEND", [5, 1], 0),
        ("MIXED", [7, 1, 1], 2),
        ("MIXED", [7], 0),
        ("MIXED", [1, 1], 2),
    ],
)
def test_the_rows_of_a_mixed_step_that_decode_are_told_by_their_length(mode, lengths, rows):
    """SGLang appends running requests to a chunk of prefill, one token each."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    batch = SimpleNamespace(forward_mode=ForwardMode[mode], extend_seq_lens_cpu=lengths)
    assert _decode_rows(batch) == rows


@pytest.mark.parametrize("complete", [True, False])
def test_a_step_that_fails_while_requests_are_served_says_why(spec, tmp_path, complete):
    """SGLang tells its parent that a process ended, and no more; a start explains itself."""
    hooks = SchedulerHooks(spec)
    hooks._rank = SimpleNamespace(
        rank=1, side=None, begin_step=lambda **_: None, recording=SimpleNamespace(wants_ids=False)
    )
    if complete:
        hooks.around_init(lambda: None)
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_decode=lambda: True), batch_size=1)

    def fail(*_):
        raise RuntimeError("layer 1, expert 4:\n down failed")

    with pytest.raises(RuntimeError):
        hooks.around_forward(fail, None, batch)
    failure = read_failure(tmp_path)
    if not complete:
        assert failure is None
        return
    assert failure.kind == "internal"
    assert failure.message == "rank 1: a step failed: layer 1, expert 4: down failed"
