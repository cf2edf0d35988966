"""SGLang's options: completed, refused by name, or rejected in SGLang's own words."""

import argparse

import pytest

from ktd.enginespec import EngineSpec
from ktd.sgl.refused_options import REFUSED, incompatible
from ktd.sgl.server_arguments import ArgumentsRefused, command_line, parse

pytestmark = pytest.mark.filterwarnings("ignore")

# What switches each refused option on, as a user would write it.
SWITCHED_ON = {
    "--ep-size": ["--ep-size", "2"],
    "--enable-dp-attention": ["--enable-dp-attention"],
    "--dp-size": ["--dp-size", "2"],
    "--moe-dp-size": ["--moe-dp-size", "2"],
    "--attn-cp-size": ["--attn-cp-size", "2"],
    "--dcp-size": ["--dcp-size", "2"],
    "--pp-size": ["--pp-size", "2"],
    "--nnodes": ["--nnodes", "2"],
    "--use-ray": ["--use-ray"],
    "--numa-node": ["--numa-node", "0"],
    "--moe-a2a-backend": ["--moe-a2a-backend", "deepep"],
    "--enable-eplb": ["--enable-eplb"],
    "--ep-num-redundant-experts": ["--ep-num-redundant-experts", "4"],
    "--elastic-ep-backend": ["--elastic-ep-backend", "mooncake"],
    "--enable-elastic-expert-backup": ["--enable-elastic-expert-backup"],
    "--enable-lora": ["--enable-lora"],
    "--lora-paths": ["--lora-paths", "a=/nowhere"],
    "--enable-paged-experts": ["--enable-paged-experts", "--paged-experts-num-resident", "8"],
    "--kt-weight-path": ["--kt-weight-path", "/nowhere"],
    "--enable-memory-saver": ["--enable-memory-saver"],
    "--enable-two-batch-overlap": ["--enable-two-batch-overlap"],
    "--enable-single-batch-overlap": ["--enable-single-batch-overlap"],
    "--cuda-graph-backend-prefill": ["--cuda-graph-backend-prefill", "breakable"],
    "--cuda-graph-config": ["--cuda-graph-config", '{"prefill": {"backend": "full"}}'],
    "--enable-pdmux": ["--enable-pdmux"],
    "--speculative-algorithm": ["--speculative-algorithm", "NGRAM"],
    "--dllm-algorithm": ["--dllm-algorithm", "LowConfidence"],
    "--enable-torch-compile": ["--enable-torch-compile"],
    "--cpu-offload-gb": ["--cpu-offload-gb", "1"],
    "--offload-group-size": ["--offload-group-size", "4"],
    "--disaggregation-mode": ["--disaggregation-mode", "prefill"],
    "--tokenizer-worker-num": ["--tokenizer-worker-num", "2"],
    "--grpc-mode": ["--grpc-mode"],
    "--smg-grpc-mode": ["--smg-grpc-mode"],
    "--quantization": ["--quantization", "fp8"],
    "--torchao-config": ["--torchao-config", "int8wo"],
    "--load-format": ["--load-format", "dummy"],
    "--custom-weight-loader": ["--custom-weight-loader", "mine.load"],
    "--weight-cache-mode": ["--weight-cache-mode", "daemon"],
    "--checkpoint-engine-wait-weights-before-ready": [
        "--checkpoint-engine-wait-weights-before-ready"
    ],
}


def spec_with(tmp_path, model, *arguments):
    return EngineSpec(
        engine_id="t-1",
        runtime_dir=str(tmp_path),
        model_path=str(model),
        sglang_args=arguments,
        device="cpu",
        moe_layers=tuple(range(6)),
        num_experts=32,
        experts_per_token=1,
        slots=(8,) * 6,
        initial=((),) * 6,
    )


@pytest.fixture(scope="module")
def known_fields():
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    flags = {action.dest: [] for action in parser._actions}
    for action in parser._actions:
        flags[action.dest] += action.option_strings
    return flags


def test_every_refused_option_has_an_example():
    """A new entry in the table without a test of its name would be an untested promise."""
    assert set(SWITCHED_ON) == {option.flag for option in REFUSED}


@pytest.mark.parametrize("option", REFUSED, ids=lambda option: option.flag)
def test_an_option_that_does_not_go_with_ktd_is_refused_by_name(
    option, tmp_path, model_dir, known_fields
):
    """Also where SGLang itself would complain about the combination in other words."""
    if option.field not in known_fields:
        pytest.skip(f"this SGLang has no {option.flag}")
    assert option.flag in known_fields[option.field]
    with pytest.raises(ArgumentsRefused) as refused:
        parse(spec_with(tmp_path, model_dir, *SWITCHED_ON[option.flag]))
    assert refused.value.kind == "incompatible"
    assert f"{option.flag} ({option.why})" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--ep", "2"], "--ep-size"),
        (["--data-parallel-size=2"], "--dp-size"),
        (["--enable-epl"], "--enable-eplb"),
    ],
)
def test_other_spellings_of_a_refused_option_are_recognised(tmp_path, model_dir, arguments, flag):
    """Aliases, = and SGLang's abbreviations all reach the same field."""
    with pytest.raises(ArgumentsRefused, match=f"not supported together with ktd: {flag} "):
        parse(spec_with(tmp_path, model_dir, *arguments))


def test_all_refused_options_are_named_at_once(tmp_path, model_dir):
    """Nobody wants to find them one start at a time."""
    arguments = ["--enable-eplb", "--ep-size", "2", "--enable-two-batch-overlap"]
    with pytest.raises(ArgumentsRefused) as refused:
        parse(spec_with(tmp_path, model_dir, *arguments))
    for flag in ("--enable-eplb", "--ep-size", "--enable-two-batch-overlap"):
        assert flag in str(refused.value)
    assert str(refused.value).endswith("; leave them out")


def test_an_option_that_another_one_switched_on_is_refused_too():
    """The completed arguments are looked at as well as the given ones."""
    completed = argparse.Namespace(ep_size=2, enable_eplb=False, lora_paths=None)
    assert incompatible(completed) == ["--ep-size (expert parallelism)"]


def test_defaults_of_sglang_are_not_refused(tmp_path, model_dir):
    """The plain command line is accepted, completed for a host without a GPU."""
    server_args = parse(spec_with(tmp_path, model_dir))
    assert server_args.device == "cpu"
    assert server_args.attention_backend == "torch_native"
    assert server_args.max_total_tokens == 65_536
    assert server_args.skip_server_warmup


def test_what_the_user_gives_beats_what_ktd_adds(tmp_path, model_dir):
    """However the option is spelt."""
    server_args = parse(spec_with(tmp_path, model_dir, "--max-total-tok=4096"))
    assert server_args.max_total_tokens == 4096


def test_an_unknown_flag_fails_with_sglangs_message(tmp_path, model_dir):
    """At once, not after a minute of loading."""
    with pytest.raises(ArgumentsRefused) as refused:
        parse(spec_with(tmp_path, model_dir, "--no-such-flag"))
    assert refused.value.kind == "usage"
    assert (
        str(refused.value)
        == "SGLang does not accept the arguments: unrecognized arguments: --no-such-flag; ktd's "
        "flags are in 'ktd serve --help', SGLang's in 'python -m sglang.launch_server --help'"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tp-size", "two"], "invalid int value: 'two'"),
        (["--context-length"], "expected one argument"),
        (["--schedule-policy", "nice"], "invalid choice: 'nice'"),
    ],
)
def test_a_wrong_value_fails_with_sglangs_message(tmp_path, model_dir, arguments, words):
    """One line, which names the option."""
    with pytest.raises(ArgumentsRefused) as refused:
        parse(spec_with(tmp_path, model_dir, *arguments))
    assert refused.value.kind == "usage"
    assert words in str(refused.value)
    assert arguments[0] in str(refused.value)


def test_another_device_than_the_daemon_chose_is_refused(tmp_path, model_dir):
    """The placement was planned for the device in the spec."""
    spec = spec_with(tmp_path, model_dir, "--device", "cuda")
    with pytest.raises(ArgumentsRefused) as refused:
        parse(spec)
    assert "cuda" in str(refused.value)


def test_the_model_of_the_spec_is_the_one_that_is_served(tmp_path):
    """ktd's own defaults never stand after what was given."""
    line = command_line(spec_with(tmp_path, "/m", "--dtype", "half"))
    assert line[line.index("--model-path") + 1] == "/m"
    assert line[-2:] == ["--dtype", "half"]
