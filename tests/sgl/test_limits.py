"""What SGLang's layers say lies between an expert's products."""

import dataclasses
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.experts.weights import Activation, ActivationKind
from ktd.sgl.limits import ExpertMath, LayerRefused, math_of

EXPERTS = 8


def layer(*, with_bias=False, moe_ep_size=1, **changes):
    """SGLang's layer, as far as it is looked at, with its own defaults."""
    from sglang.srt.layers.moe.moe_runner.base import MoeRunnerConfig

    return SimpleNamespace(
        moe_runner_config=dataclasses.replace(MoeRunnerConfig(), **changes),
        num_experts=EXPERTS,
        moe_ep_size=moe_ep_size,
        with_bias=with_bias,
    )


def test_sglangs_defaults_are_plain_experts():
    """SiLU, no biases, router weights on the output."""
    found = math_of(layer(), torch.bfloat16, EXPERTS)
    assert found == ExpertMath()
    assert found.plain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation": "gelu"}, ExpertMath(Activation(ActivationKind.GELU))),
        ({"activation": "gelu_tanh"}, ExpertMath(Activation(ActivationKind.GELU_TANH))),
        ({"swiglu_limit": 10.0}, ExpertMath(Activation(limit=10.0))),
        (
            {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0},
            ExpertMath(Activation(alpha=1.702, limit=7.0, beta=1.0), interleaved=True),
        ),
        (
            {"gemm1_alpha": 1.702, "gemm1_clamp_limit": 7.0, "gate_up_interleaved": False},
            ExpertMath(Activation(alpha=1.702, limit=7.0, beta=1.0)),
        ),
        ({"apply_router_weight_on_input": True}, ExpertMath(weights_before_input=True)),
        ({"with_bias": True}, ExpertMath(biases=True)),
    ],
)
def test_what_the_kernels_have_is_taken_over(changes, expected):
    """Each is more than SGLang's torch-native method computes."""
    found = math_of(layer(**changes), torch.bfloat16, EXPERTS)
    assert found == expected
    assert not found.plain


def test_the_routed_scaling_factor_is_left_to_the_model():
    """Without a GPU SGLang's models multiply by it behind the layer."""
    assert math_of(layer(routed_scaling_factor=2.5), torch.bfloat16, EXPERTS).plain


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"activation": "relu2"}, "activation 'relu2' is not implemented"),
        ({"is_gated": False}, "experts without a gate projection are not implemented"),
        (
            {"activation": "gelu", "swiglu_limit": 7.0},
            "activation 'gelu' with alpha or a limit is not implemented",
        ),
        ({"gemm1_clamp_limit": 7.0}, "a clamp behind the activation is not implemented"),
        ({"num_fused_shared_experts": 1}, "fused shared experts are not implemented"),
        ({"moe_ep_size": 2}, "expert parallelism is not supported"),
    ],
)
def test_what_no_kernel_has_is_refused(changes, sentence):
    """By name, before memory is taken."""
    with pytest.raises(LayerRefused, match=sentence):
        math_of(layer(**changes), torch.bfloat16, EXPERTS)


def test_models_that_do_not_run_in_bf16_are_refused():
    """With the option that helps."""
    with pytest.raises(LayerRefused, match=r"not torch.float16; start with --dtype bfloat16"):
        math_of(layer(), torch.float16, EXPERTS)
