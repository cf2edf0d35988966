"""Experts whose matrices lie in several places give the same bits as those in one tensor."""

import ctypes
import dataclasses
import mmap

import pytest

torch = pytest.importorskip("torch", reason="the Python face of the pool takes torch tensors")

from ktd.bench.kernels.formats import FORMATS, ExpertMould  # noqa: E402
from ktd.experts import _native  # noqa: E402
from ktd.experts.pool import ExpertPool  # noqa: E402
from ktd.experts.scattered import ScatteredTensor, scattered  # noqa: E402
from ktd.experts.weights import COLUMN_MAJOR, ExpertWeights, WeightFormat  # noqa: E402
from ktd.shapes.moe import MoeShape  # noqa: E402

EXPERTS, HIDDEN, WIDTH, TOKENS, TOP_K = 3, 192, 96, 21, 2
RUNS = [row["name"] for row in _native.isas() if row["supported"]]
FIELDS = ("w13", "w2", "w13_scale", "w2_scale", "w13_zeros", "w2_zeros")


class GuardedMemory:
    """Matrices that end where memory ends: whoever reads one byte more is killed."""

    def __init__(self):
        self._mappings = []

    def put(self, matrix, pitch):
        """A copy whose rows lie ``pitch`` elements apart; the last byte is a page's last."""
        rows, columns = matrix.shape
        size = ((rows - 1) * pitch + columns) * matrix.element_size()
        pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        mapping = mmap.mmap(-1, pages + mmap.PAGESIZE)
        self._mappings.append(mapping)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(address + pages), mmap.PAGESIZE, 0) == 0
        raw = torch.frombuffer(mapping, dtype=torch.uint8, count=pages)
        raw.random_(256)  # what lies between the rows is nobody's
        elements = raw[pages - size :].view(matrix.dtype)
        copy = elements.as_strided((rows, columns), (pitch, 1))
        copy.copy_(matrix)
        return copy


def one_expert_after_another(weights, *, gap):
    """The same experts, each projection by itself at the end of a page."""
    memory = GuardedMemory()
    changed = {}
    for name in FIELDS:
        tensor = getattr(weights, name)
        if tensor is None:
            continue
        columns = weights.format in COLUMN_MAJOR
        parts = 2 if name.startswith("w13") and not weights.interleaved else 1
        pieces = []
        for expert in tensor:
            matrix = expert.view(expert.shape[0], -1)
            halves = matrix.chunk(parts, dim=1 if columns else 0)
            pieces.append([memory.put(half, half.shape[1] + gap) for half in halves])
        changed[name] = scattered(pieces, tensor.shape, side_by_side=columns)
    return dataclasses.replace(weights, **changed)


def _fresh(shape, dtype):
    return torch.empty(shape, dtype=dtype)


def a_call():
    random = torch.Generator().manual_seed(11)
    x = torch.randn(TOKENS, HIDDEN, generator=random).bfloat16()
    ids = torch.stack(
        [torch.randperm(EXPERTS, generator=random)[:TOP_K] for _ in range(TOKENS)]
    ).int()
    return x, ids, torch.rand(TOKENS, TOP_K, generator=random)


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("weight_format", list(FORMATS), ids=str)
@pytest.mark.parametrize("isa", RUNS)
def test_every_kernel_reads_pieces_wherever_they_lie(isa, weight_format, gap, clamped):
    """Aligned to their elements and no more, rows apart, and not a byte beyond their end."""
    if clamped and weight_format is WeightFormat.FP8_BLOCK:
        pytest.skip("experts in fp8_block cannot have interleaved rows")
    shape = MoeShape("tiny", EXPERTS, HIDDEN, WIDTH, TOP_K, clamped=clamped)
    torch.manual_seed(7)
    together = ExpertMould(shape, weight_format).layer(EXPERTS, _fresh)
    for name in ("w13", "w2"):  # the mould's experts are all the same
        raw = getattr(together, name).view(torch.uint8)
        raw[1:] = raw[1:].flip(1)
    apart = one_expert_after_another(together, gap=gap)
    pool = ExpertPool(threads=2, isa=isa)
    x, ids, weights = a_call()
    for tokens in (1, TOKENS):
        outs = [
            pool.forward(pool.add_layer(layer), x[:tokens], ids[:tokens], weights[:tokens])
            for layer in (together, apart)
        ]
        assert outs[0].isfinite().all()
        assert outs[0].any()
        assert torch.equal(*outs)


def bf16_layer():
    pieces = torch.randn(EXPERTS, 2, WIDTH, HIDDEN).bfloat16()
    w13 = scattered([list(expert) for expert in pieces], (EXPERTS, 2 * WIDTH, HIDDEN))
    return ExpertWeights(WeightFormat.BF16, w13, torch.zeros(EXPERTS, HIDDEN, WIDTH).bfloat16())


def test_one_of_the_two_may_be_in_a_tensor():
    """Which lies where is decided for each."""
    layer = bf16_layer()
    assert set(layer.scattered) == {"w13"}
    pool = ExpertPool(threads=1)
    x, ids, weights = a_call()
    assert not pool.forward(pool.add_layer(layer), x, ids, weights).any()


def test_what_is_not_as_the_format_wants_it_is_refused():
    """By type and by shape."""
    layer = bf16_layer()
    halves = [[piece.half() for piece in expert] for expert in layer.w13.pieces]
    other = dataclasses.replace(layer, w13=scattered(halves, layer.w13.shape))
    with pytest.raises(ValueError, match=r"w13 must be torch\.bfloat16"):
        other.check()
    narrow = dataclasses.replace(layer, w13=dataclasses.replace(layer.w13, shape=(EXPERTS, 5, 7)))
    with pytest.raises(ValueError, match=r"w13 must be .* of shape"):
        narrow.check()


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ([[torch.zeros(2, 4)]], "pieces of 1 experts"),
        ([[torch.zeros(2, 4)], [torch.zeros(3, 4)]], "do not make"),
        ([[torch.zeros(2, 4)], [torch.zeros(4, 2).t()]], "rows of a piece must be contiguous"),
        ([[torch.zeros(2, 4)], [torch.zeros(2, 4).half()]], "must be a torch.float32 CPU matrix"),
        ([[torch.zeros(2, 4)], [torch.zeros(1, 4), torch.zeros(1, 3)]], "do not make"),
    ],
)
def test_pieces_that_make_no_tensor_are_refused(pieces, says):
    """A kernel would read somewhere else."""
    with pytest.raises(ValueError, match=says):
        scattered(pieces, (2, 2, 4))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_pieces_fill_a_slot_in_their_places(side_by_side):
    """Gate above up, or beside it."""
    whole = torch.arange(2 * 6 * 4.0).view(2, 6, 4)
    pieces = [list(expert.chunk(2, dim=1 if side_by_side else 0)) for expert in whole]
    tensor = scattered(pieces, whole.shape, side_by_side=side_by_side)
    assert isinstance(tensor, ScatteredTensor)
    slot = torch.zeros(6, 4)
    for place, piece in tensor.parts(1, slot):
        place.copy_(piece)
    assert torch.equal(slot, whole[1])
