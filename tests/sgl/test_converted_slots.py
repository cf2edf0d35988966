"""What SGLang makes of 4-bit experts after loading, and slots that are made like it; on the CPU."""

import queue
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.experts.store import HostStore
from ktd.sgl import scratch_expert
from ktd.sgl.converted_slots import ConvertedSlots, RepackedSlots
from ktd.sgl.copier import Copier
from ktd.sgl.copy_lane import HostLane
from ktd.sgl.expert_layer import ExpertLayer
from ktd.sgl.gpu_slots import slots_on_gpu
from ktd.sgl.one_expert import OneExpert
from ktd.sgl.scratch_expert import ScratchExpert
from tests.sgl.four_bits import Experts, Sizes, in_pieces

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = Sizes(experts=5, hidden=256, width=128, group=32)
CPU = torch.device("cpu")
# SGLang's kernels for Marlin run on GPUs alone; what it does for its Triton runner is torch's, and
# turns a declared parameter round, so it serves as something that repacks as well.
KIND = "int4-triton"


@pytest.fixture
def experts():
    return Experts(KIND, SIZES)


@pytest.fixture
def host(experts):
    return experts.host(torch.Generator().manual_seed(3))


def expert_of(experts):
    return OneExpert(experts.method, experts.layer(), experts.format, experts.attributes, CPU)


def filled(slots, experts, layer, host, order):
    """A layer whose slots hold ``order``."""
    slots.prepare(layer)
    table = torch.full((SIZES.experts,), -1, dtype=torch.int32)
    made = ExpertLayer(
        0, SIZES.experts, len(order), slots.source(host), slots.tensors(layer), table
    )
    for expert in order:
        made.reserve(expert).run(HostLane())
        made.publish(expert)
    slots.filled(layer)
    return made


def same_as_sglang(layer, experts, host, order):
    """Compares what the runner reads with unmodified SGLang's layer of all experts."""
    whole = experts.as_sglang_has(host, CPU)
    for name in host:
        found, wanted = getattr(layer, name), getattr(whole, name)[list(order)]
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found, wanted), name


def test_the_triton_runner_reads_a_checkpoints_rows(experts, host):
    """The transposes while loading and after it cancel: only the type is another one."""
    whole = experts.as_sglang_has(host, CPU)
    for name, rows in host.items():
        laid_out = getattr(whole, name)
        assert torch.equal(laid_out.view(torch.uint8), rows.view(torch.uint8)), name
    assert expert_of(experts).keeps_bytes()


def test_slots_on_the_triton_runner_take_host_rows_as_they_are(experts, host):
    """In any order, and what the runner reads is SGLang's own."""
    layer = experts.layer()
    slots = slots_on_gpu(
        experts.method,
        layer,
        experts.loader(HostStore()),
        3,
        experts.attributes,
        experts=experts.format,
        scratch={},
        device=CPU,
    )
    assert type(slots) is ConvertedSlots
    assert slots.streams
    order = (4, 0, 2)
    made = filled(slots, experts, layer, host, order)
    same_as_sglang(layer, experts, host, order)
    assert made.expert_bytes == made.host_expert_bytes
    # A prefill stream has host rows in its buffer, and SGLang's method takes them.
    piece = slots.parameters({name: tensor[:2] for name, tensor in host.items()})
    assert {n: (t.dtype, t.shape[1:]) for n, t in piece.items()} == {
        n: (getattr(layer, n).dtype, getattr(layer, n).shape[1:]) for n in host
    }


@pytest.mark.parametrize("num_slots", [0, 1, 3])
def test_slots_have_room_for_s_experts_and_the_loader_finds_them_before(experts, num_slots):
    """The parameters of one expert stand for them while the checkpoint is loaded."""
    layer, loader = experts.layer(), experts.loader(HostStore())
    slots = ConvertedSlots(
        experts.method,
        layer,
        loader,
        num_slots,
        experts.attributes,
        layout=expert_of(experts).layout,
        unstored=experts.format.unstored(experts.declared()),
    )
    for name in loader.template:
        assert getattr(layer, name).shape[0] == 1
        assert getattr(layer, name).weight_loader is loader
    slots.prepare(layer)
    for name, tensor in slots.tensors(layer).items():
        assert tensor.shape[0] == num_slots
        assert not tensor.any(), name


@pytest.fixture(params=["learnt", "other code", "no memory"])
def is_learnt(request, monkeypatch):
    def fail(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if request.param != "learnt":
        other = fail if request.param == "no memory" else lambda _: None
        monkeypatch.setattr(scratch_expert, "learnt", other)
    return request.param == "learnt"


@pytest.mark.parametrize("mapped", [False, True], ids=["copied", "mapped"])
def test_an_expert_passes_through_scratch_into_its_slot_by_the_copier(
    experts, host, mapped, is_learnt, caplog
):
    """In pieces at a limited rate, in place, one after the other, in the thread that copies.

    By what was learnt from SGLang's code, or by that code itself; then prefills do not stream.
    """
    kept = in_pieces(host) if mapped else host
    layer, scratch = experts.layer(), ScratchExpert(expert_of(experts))
    slots = RepackedSlots(
        experts.method,
        layer,
        experts.loader(HostStore()),
        3,
        experts.attributes,
        scratch=scratch,
    )
    assert slots.streams is is_learnt
    assert ("long prefills do not stream" in caplog.text) is not is_learnt
    made = filled(slots, experts, layer, kept, (4, 0, 2))
    same_as_sglang(layer, experts, host, (4, 0, 2))
    addresses = [tensor.data_ptr() for tensor in made.slots.values()]
    finished, copied = queue.Queue(), []
    copier = Copier(
        finished=lambda *outcome: finished.put(outcome),
        copied=copied.append,
        bytes_per_second=4 * made.host_expert_bytes,
    )
    for expert in (4, 2):
        made.unmap(expert)
    moves = [made.reserve(expert) for expert in (1, 3)]
    copier.submit(7, moves)
    assert finished.get(timeout=30) == (7, None)
    copier.stop()
    assert sum(copied) == sum(move.num_bytes for move in moves) == 2 * made.host_expert_bytes
    assert len(copied) > 2 * len(host)
    assert [tensor.data_ptr() for tensor in made.slots.values()] == addresses
    same_as_sglang(layer, experts, host, (1, 0, 3))


def test_an_expert_is_in_its_slot_with_its_last_row_and_not_before(experts, host):
    """What a stopped copy leaves behind is the slot as it was."""
    scratch = ScratchExpert(expert_of(experts))
    slots = RepackedSlots(
        experts.method,
        layer := experts.layer(),
        experts.loader(HostStore()),
        1,
        experts.attributes,
        scratch=scratch,
    )
    made = filled(slots, experts, layer, host, (0,))
    before = {name: tensor.clone() for name, tensor in made.slots.items()}
    made.unmap(0)
    *parts, last = made.reserve(1).parts
    lane = HostLane()
    for part in parts:
        lane.put(part, 0, part.units)
    lane.put(last, 0, last.units - 1)
    assert all(torch.equal(made.slots[name], before[name]) for name in before)
    lane.put(last, last.units - 1, 1)
    same_as_sglang(layer, experts, host, (1,))


def test_bytes_in_another_order_are_seen(experts):
    """A release of SGLang that rearranges them is not taken for one that does not."""
    expert = expert_of(experts)
    expert._transposed = False  # as if a checkpoint had them the way SGLang declares them
    expert.rows = {n: row.transpose(0, 1).contiguous() for n, row in expert.rows.items()}
    assert not expert.keeps_bytes()


def test_layers_of_one_shape_share_a_scratch_expert():
    """And others have their own."""
    scratch = {}
    made = []
    for sizes in (SIZES, SIZES, Sizes(experts=5, hidden=256, width=256, group=32)):
        experts = Experts(KIND, sizes)
        made.append(
            slots_on_gpu(
                experts.method,
                experts.layer(),
                experts.loader(HostStore()),
                2,
                experts.attributes,
                experts=replace(experts.format, repacked=True),
                scratch=scratch,
                device=CPU,
            )
        )
    assert [type(slots) for slots in made] == [RepackedSlots] * 3
    assert len(scratch) == 2


def test_a_release_that_rearranges_bytes_is_refused(experts, monkeypatch):
    """Before anything is loaded."""
    monkeypatch.setattr(OneExpert, "keeps_bytes", lambda _: False)
    with pytest.raises(RuntimeError, match="leave out --moe-runner-backend triton"):
        slots_on_gpu(
            experts.method,
            experts.layer(),
            experts.loader(HostStore()),
            2,
            experts.attributes,
            experts=experts.format,
            scratch={},
            device=CPU,
        )
