"""A model folder is understood, or refused in one sentence before any weight is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktd.errors import ModelUnsupported
from ktd.model.facts import read_facts
from tests.model.conftest import EXPERT_BYTES, tensors_of, write_safetensors

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
TINY = Path(__file__).parents[2] / "models/ktd-tiny"


class TestUnderstood:
    def test_ktd_tiny(self):
        """The shape that its description gives."""
        facts = read_facts(TINY, device="cpu")
        assert facts.architecture == "Qwen3MoeForCausalLM"
        assert facts.moe_layers == (0, 1, 2, 3, 4, 5)
        assert (facts.num_experts, facts.experts_per_token) == (32, 4)
        assert (facts.hidden_size, facts.expert_intermediate_size) == (256, 64)
        assert facts.expert_bytes == 3 * 256 * 64 * 2
        assert facts.max_context == 4096

    def test_bytes(self, folder):
        """Experts and the rest, from the headers."""
        facts = read_facts(folder.written(), device="cpu")
        assert facts.expert_bytes == EXPERT_BYTES
        assert facts.host_store_bytes == 2 * 4 * EXPERT_BYTES
        assert facts.other_bytes == 10 * 8 * 2

    @pytest.mark.parametrize("key", ["num_local_experts", "n_routed_experts", "moe_num_experts"])
    def test_every_name_of_the_number_of_experts(self, folder, key):
        """Families name it differently."""
        facts = read_facts(folder.written(num_experts=None, **{key: 4}), device="cpu")
        assert facts.num_experts == 4

    def test_a_nested_text_configuration(self, folder):
        """Multimodal models keep it under text_config."""
        inner = {k: v for k, v in folder.config.items() if k != "architectures"}
        folder.config = {"architectures": ["Qwen3MoeForCausalLM"], "text_config": inner}
        assert read_facts(folder.written(), device="cpu").num_experts == 4

    def test_mixtral_has_its_width_under_another_name(self, folder):
        """Without moe_intermediate_size the experts are as wide as intermediate_size."""
        path = folder.written(
            architectures=["MixtralForCausalLM"], moe_intermediate_size=None, intermediate_size=4
        )
        assert read_facts(path, device="cpu").expert_intermediate_size == 4

    def test_quantised_experts_with_their_scales(self, folder):
        """One scale for each block of 128 x 128, in each of three projections."""
        for layer, name in enumerate("ab"):
            tensors = tensors_of(layer, "F8_E4M3")
            scales = {f"{key}_scale_inv": ("F32", [1, 1]) for key in tensors}
            head = {"lm_head.weight": ("BF16", [10, 8])} if layer else {}
            write_safetensors(folder.path / f"{name}.safetensors", {**tensors, **scales, **head})
        facts = read_facts(folder.written(quantization_config=FP8), device="cpu")
        assert facts.expert_format == "fp8_block"
        assert facts.expert_bytes == 3 * (8 * 4 + 4)

    def test_experts_that_a_quantised_checkpoint_left_alone(self, folder):
        """The headers decide."""
        facts = read_facts(folder.written(quantization_config=FP8), device="cpu")
        assert (facts.expert_format, facts.expert_bytes) == ("bf16", EXPERT_BYTES)

    def test_gpt_oss_on_a_gpu(self, folder):
        """A slot is as large as SGLang's Marlin runner pads experts; host memory is as the file."""
        for index, name in enumerate("ab"):
            head = {"lm_head.weight": ("BF16", [10, 8])} if name == "b" else {}
            experts = f"model.layers.{index}.mlp.experts"
            blocks = {
                f"{experts}.{part}_proj_{kind}": (dtype, [4, 8])
                for part in ("gate_up", "down")
                for kind, dtype in (("blocks", "U8"), ("scales", "U8"), ("bias", "BF16"))
            }
            write_safetensors(folder.path / f"{name}.safetensors", blocks | head)
        (folder.path / "model.safetensors.index.json").unlink()
        sizes = {"hidden_size": 192, "moe_intermediate_size": None, "intermediate_size": 96}
        config = {
            "architectures": ["GptOssForCausalLM"],
            "swiglu_limit": 7.0,
            "quantization_config": {"quant_method": "mxfp4"},
        }
        facts = read_facts(folder.written(**config, **sizes), device="cuda")
        assert (facts.expert_format, facts.moe_runner) == ("mxfp4", "marlin")
        # Half a byte and a 32nd of one for each weight, and bf16 biases.
        assert facts.cpu_expert_bytes == 3 * 192 * 96 * 17 // 32 + 2 * (2 * 96 + 192)
        assert facts.expert_bytes == 3 * 256 * 128 * 17 // 32 + 2 * (2 * 128 + 256)
        assert facts.host_store_bytes == 2 * 4 * facts.cpu_expert_bytes
        # Each of two ranks pads 48 to 128.
        both = read_facts(folder.path, device="cuda", ranks=2)
        assert both.cpu_expert_bytes == facts.cpu_expert_bytes
        assert both.expert_bytes == 3 * 256 * 256 * 17 // 32 + 2 * (2 * 256 + 256)
        with pytest.raises(ModelUnsupported, match="GptOssForCausalLM is not supported on cpu;"):
            read_facts(folder.path, device="cpu")


class TestRefused:
    def test_quantised_weights_beside_the_experts(self, folder):
        """SGLang has no kernels for them without a GPU."""
        write_safetensors(
            folder.path / "b.safetensors",
            {**tensors_of(1), "lm_head.weight": ("F8_E4M3", [10, 8])},
        )
        with pytest.raises(ModelUnsupported, match=r"beside its experts \(F8_E4M3\), for which"):
            read_facts(folder.written(quantization_config=FP8), device="cpu")

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"architectures": ["DbrxForCausalLM"]}, "DbrxForCausalLM is not supported; supported"),
            ({"architectures": []}, "names no architecture"),
            ({"num_experts": None}, "is a dense model"),
            ({"num_experts": 0}, "is a dense model"),
            ({"decoder_sparse_step": 0}, "is a dense model"),
            ({"mlp_only_layers": [0, 1]}, "is a dense model"),
            ({"hidden_act": "gelu"}, "'gelu', and SGLang's Qwen3MoeForCausalLM computes silu only"),
            ({"swiglu_limit": 7.0}, r"clamps its activation \(swiglu_limit = 7.0\)"),
            ({"quantization_config": {"quant_method": "modelopt"}}, "quantised by modelopt"),
            ({"quantization_config": {"format": "pack-quantized"}}, "by pack-quantized"),
            ({"quantization_config": ["fp8"]}, "in an unknown way how its experts are quantised"),
            ({"tie_word_embeddings": True}, "ties its output head"),
            ({"num_experts_per_tok": 9}, "does not say how large its experts are"),
            ({"moe_layers_enum": "a,b"}, "in an unknown way"),
        ],
    )
    def test_by_name(self, folder, changes, sentence):
        """The sentence names what is not implemented."""
        with pytest.raises(ModelUnsupported, match=sentence) as caught:
            read_facts(folder.written(**changes), device="cpu")
        assert "\n" not in str(caught.value)

    def test_what_sglang_computes_on_no_gpu(self, folder):
        """The CPU's kernels compute it."""
        for index, name in enumerate("ab"):
            head = {"lm_head.weight": ("BF16", [10, 8])} if name == "b" else {}
            tensors = {**tensors_of(index, "I32"), **head}
            write_safetensors(folder.path / f"{name}.safetensors", tensors)
        config = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}
        folder.written(quantization_config=config)
        assert read_facts(folder.path, device="cpu").expert_format == "gptq"
        with pytest.raises(ModelUnsupported, match=r"GPTQ quantised asymmetrically \(sym=false\)"):
            read_facts(folder.path, device="cuda")
        facts = read_facts(
            folder.written(quantization_config=config | {"sym": True}), device="cuda"
        )
        assert (facts.expert_format, facts.moe_runner) == ("gptq", "auto")
        folder.written(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32})
        assert read_facts(folder.path, device="cpu").expert_format == "awq"
        with pytest.raises(
            ModelUnsupported, match=r"AWQ quantised in groups of 32, .* 128, or serve this one with"
        ):
            read_facts(folder.path, device="cuda")

    @pytest.mark.parametrize("dtype", ["F16", "F32", "F8_E4M3"])
    def test_experts_in_another_type(self, folder, dtype):
        """The headers contradict the configuration, which says bf16."""
        write_safetensors(folder.path / "a.safetensors", tensors_of(0, dtype))
        with pytest.raises(ModelUnsupported, match=f"experts in {dtype}"):
            read_facts(folder.written(), device="cpu")

    def test_a_missing_folder(self, tmp_path):
        """Named."""
        with pytest.raises(ModelUnsupported, match=r"no model folder .*nowhere"):
            read_facts(tmp_path / "nowhere", device="cpu")

    def test_no_configuration(self, folder):
        """A folder without config.json is no model."""
        with pytest.raises(ModelUnsupported, match=r"has no config\.json"):
            read_facts(folder.path, device="cpu")

    @pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
    def test_a_broken_configuration(self, folder, text):
        """Not JSON, not an object, not text."""
        (folder.path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ModelUnsupported, match=r"config\.json"):
            read_facts(folder.path, device="cpu")
