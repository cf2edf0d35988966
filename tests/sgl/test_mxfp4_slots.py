"""MXFP4 experts, which SGLang pads and repacks for its Marlin runner, in slots; on the CPU.

All that SGLang does to them is torch's but the order of four bits within a tile, which a kernel
gives that has no twin without a GPU: here the same order is written down in torch.
"""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.experts.store import HostStore
from ktd.experts.weights import Activation
from ktd.sgl import converted_slots
from ktd.sgl.converted_slots import RepackedSlots
from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.gpu_slots import slots_on_gpu
from ktd.sgl.limits import ExpertMath
from tests.sgl.four_bits import GPT_OSS, MXFP4, Experts, Sizes, in_pieces, runner_config
from tests.sgl.quantised_models import nibbles

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
WHOLE = Sizes(experts=5, hidden=256, width=128, group=32)
# SGLang makes 256 of 192, and 128 of 96.
PADDED = Sizes(experts=5, hidden=192, width=96, group=32)
HALVES = ExpertMath(Activation(limit=7.0))
EVERY = [
    pytest.param(sizes, math, id=f"{name}-{kind}")
    for name, sizes in (("whole", WHOLE), ("padded", PADDED))
    for kind, math in (("gpt-oss", GPT_OSS), ("halves", HALVES), ("silu", ExpertMath()))
]


def marlin_order():
    """Where Marlin's kernel reads the 1,024 values of four tiles of 16 x 16."""
    order = []
    for thread in range(32):
        rows = [2 * (thread % 4) + row for row in (0, 1, 8, 9)]
        of_tile = [16 * row + thread // 4 + column for column in (0, 8) for row in rows]
        order += [256 * tile + place for tile in range(4) for place in of_tile]
    eights = torch.tensor(order).view(-1, 8)
    return eights[:, [0, 2, 4, 6, 1, 3, 5, 7]].flatten()


def marlin_repack(b_q_weight, perm, size_k, size_n, num_bits):
    """What SGLang's kernel makes of int32 ``[K / 8, N]``: int32 ``[K / 16, 2N]``."""
    assert (perm.numel(), num_bits) == (0, 4)
    values = b_q_weight.unsqueeze(1) >> (4 * torch.arange(8)).view(1, 8, 1) & 15
    tiles = values.reshape(size_k // 16, 16, size_n // 16, 16).transpose(1, 2)
    ordered = tiles.reshape(-1, 1024)[:, marlin_order()]
    return nibbles(ordered.reshape(size_k // 16, size_n * 16))


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch):
    """What of SGLang's work after loading asks for a GPU."""
    from sglang.srt.layers.quantization import marlin_utils_fp4, mxfp4

    monkeypatch.setattr(marlin_utils_fp4, "gptq_marlin_repack", marlin_repack, raising=False)
    monkeypatch.setattr(
        marlin_utils_fp4, "marlin_make_workspace", lambda device, _: torch.zeros(4, device=device)
    )
    hopper = SimpleNamespace(is_sm90=True, is_sm100=False, is_sm120=False)
    monkeypatch.setattr(mxfp4, "get_platform", lambda: hopper, raising=False)
    monkeypatch.setattr(mxfp4, "is_sm90_supported", lambda: True, raising=False)


class Slots:
    """S slots of a layer, and SGLang's layer that they are of."""

    def __init__(self, experts, num_slots, scratch=None):
        self.experts = experts
        self.layer = experts.layer()
        self.scratch = {} if scratch is None else scratch
        self.slots = slots_on_gpu(
            experts.method,
            self.layer,
            experts.loader(HostStore()),
            num_slots,
            experts.attributes,
            experts=experts.format,
            scratch=self.scratch,
            device=CPU,
            unstored=experts.format.unstored(experts.declared()),
        )

    def filled(self, host, order):
        """With these experts."""
        table = torch.full((self.experts.sizes.experts,), -1, dtype=torch.int32)
        self.slots.prepare(self.layer)
        tensors = self.slots.tensors(self.layer)
        made = ExpertLayer(
            0, self.experts.sizes.experts, len(order), self.slots.source(host), tensors, table
        )
        for expert in order:
            made.reserve(expert).run(HostLane())
            made.publish(expert)
        self.slots.filled(self.layer)
        return made


def same_as_sglang(layer, experts, host, order):
    """Compares all that the runner reads with unmodified SGLang's layer of all experts."""
    whole = experts.as_sglang_has(host, CPU)
    for name, parameter in whole.named_parameters():
        found, wanted = getattr(layer, name), parameter[list(order)]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), name


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
@pytest.mark.parametrize(("sizes", "math"), EVERY)
def test_slots_hold_what_sglang_makes_of_all_experts(sizes, math, mapped):
    """To the last byte, in any order, also behind one that was there before."""
    experts = Experts(MXFP4, sizes, math)
    host = experts.host(torch.Generator().manual_seed(3))
    slots = Slots(experts, 3)
    assert type(slots.slots) is RepackedSlots
    assert slots.slots.streams
    made = slots.filled(in_pieces(host) if mapped else host, (4, 0, 2))
    same_as_sglang(slots.layer, experts, host, (4, 0, 2))
    made.unmap(0)
    made.reserve(3).run(HostLane())
    made.publish(3)
    same_as_sglang(slots.layer, experts, host, (4, 3, 2))
    assert slots.layer.w13_weight_scale.dtype is torch.float8_e8m0fnu


@pytest.mark.parametrize(("sizes", "math"), EVERY)
def test_experts_of_a_prefill_stream_are_laid_out_as_slots_are(sizes, math):
    """Several at once, with what SGLang pads them with, as its method takes them."""
    experts = Experts(MXFP4, sizes, math)
    host = experts.host(torch.Generator().manual_seed(3))
    slots = Slots(experts, 0)
    slots.slots.prepare(slots.layer)
    layout = slots.slots.laid_out
    room = layout.room_for(3, CPU)
    layout.lay_out({name: host[name][1:4] for name in layout.moves}, room)
    whole = experts.as_sglang_has(host, CPU)
    piece = slots.slots.parameters(room)
    # Biases too where a checkpoint has none, which SGLang's runner reads all the same.
    assert set(piece) == {name for name, _ in whole.named_parameters()}
    for name, found in piece.items():
        wanted = getattr(whole, name)[1:4]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), name


@pytest.mark.parametrize(("sizes", "math"), EVERY)
def test_host_memory_has_experts_without_what_pads_them(sizes, math):
    """The pool takes them as the checkpoint has them, and computes all of what they compute."""
    experts = Experts(MXFP4, sizes, math)
    found = experts.format.experts(experts.host(torch.Generator().manual_seed(3)), experts.math)
    found.check()
    assert (found.num_experts, found.hidden, found.intermediate) == (5, sizes.hidden, sizes.width)
    assert (found.w13_bias is not None) == math.biases
    declared = experts.declared()["w13_weight"].shape
    assert (declared != found.w13.shape) == (sizes is PADDED)


@pytest.mark.parametrize("num_slots", [0, 1, 3])
def test_no_more_experts_are_there_than_slots(num_slots):
    """SGLang's method asks the layer for how many, which keeps its own number for the loader."""
    experts = Experts(MXFP4, PADDED)
    slots = Slots(experts, num_slots)
    assert slots.layer.num_local_experts == PADDED.experts
    assert {p.shape[0] for p in slots.layer.parameters()} == {1}
    slots.slots.prepare(slots.layer)
    assert {p.shape[0] for p in slots.layer.parameters()} == {num_slots}
    assert not any(p.view(torch.uint8).any() for p in slots.layer.parameters())


def test_layers_of_one_shape_share_memory_for_one_expert():
    """Its host rows; what pads them is the same for all."""
    scratch = {}
    for sizes in (PADDED, PADDED, WHOLE):
        Slots(Experts(MXFP4, sizes), 2, scratch)
    assert len(scratch) == 2


@pytest.mark.parametrize("sizes", [WHOLE, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("by_itself", [True, False])
def test_what_the_runner_gives_is_cut_to_the_width_of_tokens(sizes, by_itself, monkeypatch):
    """And where it has to be told that ids may be missing, it is, for as many as a piece has."""
    monkeypatch.setattr(converted_slots, "skips_by_itself", lambda: by_itself)
    experts = Experts(MXFP4, sizes)
    slots = Slots(experts, 3)
    asked = []

    def run(dispatch, info):
        asked.append(info)
        return SimpleNamespace(hidden_states=dispatch.hidden_states + 1)

    with experts.chosen_runner():
        slots.slots.create_runner(slots.layer, runner_config(sizes, experts.math))
    assert experts.method.runner.runner_backend.is_marlin()
    experts.method.runner = SimpleNamespace(run=run)
    slots.slots.prepare(slots.layer)
    slots.layer.dispatcher = SimpleNamespace(local_expert_mapping=None, num_experts=sizes.experts)
    topk = SimpleNamespace(_replace=lambda **_: SimpleNamespace(format=None))
    rows = torch.randn(7, sizes.hidden).bfloat16()
    monkeypatch.setattr(slots.slots, "_method", _Applies(experts.method))
    found = slots.slots.compute(slots.layer, _Dispatch(rows, topk), None, None)
    assert found.is_contiguous()
    assert torch.equal(found, rows + 1)
    (info,) = asked
    assert info.w13_bias is slots.layer.w13_weight_bias
    assert info.global_num_experts == (-1 if by_itself else sizes.experts)
    if by_itself:
        assert info.expert_map is None
    else:
        assert info.expert_map.tolist() == list(range(sizes.experts))


class _Dispatch(SimpleNamespace):
    def __init__(self, hidden_states, topk_output):
        super().__init__(hidden_states=hidden_states, topk_output=topk_output)

    def _replace(self, **changes):
        return _Dispatch(**(vars(self) | changes))


class _Applies:
    """SGLang's method with the path that it has for Marlin."""

    def __init__(self, method):
        self._of = method

    def apply(self, layer, dispatch_output):
        return self._of._apply_marlin(layer, dispatch_output)
