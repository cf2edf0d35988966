"""What slots on a GPU take and what is refused by name; no GPU is needed to say so."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.experts.scattered import scattered
from ktd.experts.weights import Activation, ActivationKind, WeightFormat
from ktd.sgl import cuda_formats
from ktd.sgl.expert_format import ExpertFormat, FormatRefused, expert_format
from ktd.sgl.limits import ExpertMath
from tests.sgl.four_bits import GPT_OSS, KINDS, MIDDLE, MXFP4, Experts, Sizes

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Sizes(experts=3, hidden=256, width=128, group=32)
LARGE_GROUPS = Sizes(experts=3, hidden=256, width=256, group=128)


@pytest.mark.parametrize(
    ("kind", "weights", "repacked"),
    [
        ("int4-triton", WeightFormat.INT4, False),
        ("int4-marlin", WeightFormat.INT4, True),
        ("gptq", WeightFormat.GPTQ, True),
        ("awq", WeightFormat.AWQ, True),
    ],
)
def test_four_bits_are_admitted_and_marlins_are_repacked(kind, weights, repacked):
    """The pool takes what host memory then has; scales are bf16, as SGLang's kernels want them."""
    experts = Experts(kind, SIZES)
    assert (experts.format.weights, experts.format.repacked) == (weights, repacked)
    cuda_formats.check(experts.format, ExpertMath())
    host = experts.host(torch.Generator().manual_seed(1))
    found = experts.format.experts(host, ExpertMath())
    found.check()
    assert found.w13_scale.dtype is found.w2_scale.dtype is torch.bfloat16
    assert (found.hidden, found.intermediate, found.group) == (256, 128, 32)
    assert set(KINDS) == {"int4-triton", "int4-marlin", "gptq", "awq", MXFP4}


@pytest.mark.parametrize(
    ("weights", "repacked"), [(WeightFormat.GPTQ, False), (WeightFormat.BF16, True)]
)
def test_other_formats_are_refused_with_what_is_served(weights, repacked):
    """Also one that SGLang rearranges where ktd counts on host rows."""
    experts = ExpertFormat(weights, {}, repacked=repacked)
    with pytest.raises(
        FormatRefused, match=r"only bf16, fp8_block, .* int4, gptq, awq, mxfp4; use such"
    ):
        cuda_formats.check(experts, ExpertMath())


def test_other_activations_are_refused_and_plain_ones_are_not():
    """Whatever the format."""
    experts = Experts("awq", SIZES).format
    with pytest.raises(FormatRefused, match="start with --device cpu"):
        cuda_formats.check(experts, ExpertMath(Activation(limit=7.0)))
    cuda_formats.check(experts, ExpertMath())


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_a_runner_that_has_the_format_not_is_refused(kind):
    """SGLang would end with an assertion."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    experts = Experts(kind, LARGE_GROUPS).format
    cuda_formats.check_runner(experts, MoeRunnerBackend.AUTO, LARGE_GROUPS.width)
    with pytest.raises(FormatRefused, match="leave out --moe-runner-backend triton"):
        cuda_formats.check_runner(experts, MoeRunnerBackend.TRITON, LARGE_GROUPS.width)
    with pytest.raises(FormatRefused, match=r"\(128 wide\) is no wider than a group \(128\)"):
        cuda_formats.check_runner(experts, MoeRunnerBackend.AUTO, LARGE_GROUPS.group)


@pytest.mark.parametrize("group", [32, 64, 256])
def test_zero_points_of_other_groups_are_refused(group):
    """SGLang's Marlin kernel has those of the first group of what it takes at a time."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    sizes = Sizes(3, 512, 512, group)
    with pytest.raises(FormatRefused, match=f"awq experts in groups of {group}; use a checkpoint"):
        cuda_formats.check_runner(Experts("awq", sizes).format, MoeRunnerBackend.AUTO, 512)
    cuda_formats.check_runner(Experts("gptq", sizes).format, MoeRunnerBackend.AUTO, 512)


def test_mxfp4_is_admitted_on_marlin_with_what_its_experts_compute():
    """gpt-oss's clamped SwiGLU with biases, and SiLU with a limit or none."""
    for math in (GPT_OSS, ExpertMath(), ExpertMath(Activation(limit=7.0))):
        experts = Experts(MXFP4, SIZES, math).format
        assert (experts.weights, experts.repacked) == (WeightFormat.MXFP4, True)
        cuda_formats.check(experts, math)


@pytest.mark.parametrize(
    "math",
    [
        ExpertMath(Activation(ActivationKind.GELU)),
        ExpertMath(Activation(alpha=1.702, beta=1.0)),
        ExpertMath(weights_before_input=True),
    ],
    ids=["gelu", "alpha-without-limit", "weights-before"],
)
def test_what_marlin_does_not_compute_with_mxfp4_is_refused(math):
    """SGLang would end with an assertion, or leave it out."""
    experts = Experts(MXFP4, SIZES).format
    with pytest.raises(FormatRefused, match="start with --device cpu"):
        cuda_formats.check(experts, math)


def test_mxfp4_on_another_runner_is_refused_with_the_one_to_use():
    """triton_kernels mixes experts, and has no place for a pair that is not there."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    experts = Experts(MXFP4, SIZES)
    cuda_formats.check_runner(experts.format, MoeRunnerBackend.MARLIN, SIZES.width)
    experts.method.use_marlin = False
    other = cuda_formats.beside_gpu(
        expert_format(experts.method, experts.layer(), experts.math),
        experts.math,
        hidden=SIZES.hidden,
        width=SIZES.width,
    )
    with pytest.raises(FormatRefused, match=r"SGLang's triton_kernel runner .* ktd chooses marlin"):
        cuda_formats.check_runner(other, MoeRunnerBackend.TRITON_KERNELS, SIZES.width)


@pytest.mark.parametrize(("hidden", "width"), [(96, 128), (256, 48)])
def test_sizes_that_marlin_takes_not_are_refused(hidden, width):
    """gpt-oss's 2880 are divided by two ranks, and not by four."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    experts = Experts(MXFP4, Sizes(3, hidden, width, 32)).format
    with pytest.raises(FormatRefused, match=r"use fewer ranks \(--tp\)"):
        cuda_formats.check_runner(experts, MoeRunnerBackend.MARLIN, width)


def test_mxfp4_wants_a_gpu_that_sglang_has_it_for():
    """Others have no such bound."""
    experts = Experts(MXFP4, SIZES).format
    cuda_formats.check_gpu(experts, (9, 0))
    cuda_formats.check_gpu(Experts("awq", SIZES).format, (8, 0))
    with pytest.raises(FormatRefused, match=r"from compute capability 9.0 on, .* has 8\.0"):
        cuda_formats.check_gpu(experts, (8, 0))


def test_either_runner_computes_w4a16():
    """Whatever was asked for."""
    from sglang.srt.layers.moe.utils import MoeRunnerBackend

    for kind in ("int4-triton", "int4-marlin"):
        experts = Experts(kind, SIZES).format
        for backend in (MoeRunnerBackend.AUTO, MoeRunnerBackend.TRITON, MoeRunnerBackend.MARLIN):
            cuda_formats.check_runner(experts, backend, SIZES.group)


def test_gptq_is_symmetric_on_a_gpu():
    """SGLang's kernel does without zero points, and the CPU would compute with them."""
    experts = Experts("gptq", SIZES)
    host = experts.host(torch.Generator().manual_seed(1))
    cuda_formats.check_zeros(experts.format, host)
    crooked = host["w2_qzeros"].clone()
    crooked[1, 2, 3] = MIDDLE + 1
    with pytest.raises(FormatRefused, match="their w2_qzeros are not"):
        cuda_formats.check_zeros(experts.format, host | {"w2_qzeros": crooked})
    pieces = scattered([[zeros] for zeros in crooked], crooked.shape)
    with pytest.raises(FormatRefused, match="start with --device cpu"):
        cuda_formats.check_zeros(experts.format, host | {"w2_qzeros": pieces})


def test_zero_points_that_the_runner_reads_may_be_any():
    """AWQ's are repacked with the rest."""
    experts = Experts("awq", SIZES)
    assert experts.format.unread == ()
    cuda_formats.check_zeros(experts.format, experts.host(torch.Generator().manual_seed(1)))


def test_gptq_has_its_scheme_before_its_parameters():
    """The scheme says what the format is; one that is there stays."""
    experts = Experts("gptq", SIZES)
    layer = experts.layer()
    layer.scheme = None
    cuda_formats.settle(experts.method, layer)
    assert type(layer.scheme).__name__ == "GPTQMarlinMoEScheme"
    made = layer.scheme
    cuda_formats.settle(experts.method, layer)
    assert layer.scheme is made


def test_scales_of_gptq_stay_as_they_are_without_a_gpu():
    """There nothing wants them shorter."""
    experts = Experts("gptq", SIZES)
    assert experts.format.dtypes["w13_scales"] is torch.bfloat16
    declared = experts.declared()
    on_cpu = replace(experts.format, dtypes={"w13_qzeros": torch.int32, "w2_qzeros": torch.int32})
    assert on_cpu.host_parameters(declared)["w13_scales"].dtype is torch.half
