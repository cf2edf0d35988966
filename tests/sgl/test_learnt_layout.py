"""What SGLang's code does to an expert is found out from that code, if it moves numbers alone."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="experts are torch tensors")

from ktd.cuda.rearrangement import Rearrangement
from ktd.sgl.learnt_layout import learnt
from ktd.sgl.one_expert import Layout

OUTPUTS, INPUTS, GROUP = 24, 32, 8
FIELDS = {"w": "w13", "s": "w13_scale", "z": "w13_zeros", "b": "w13_bias"}


class Code:
    """Stands for SGLang's: nibbles and numbers change places, and some are padded."""

    def __init__(self, scale=torch.bfloat16, change=None, *, in_place=False):
        self.fields = FIELDS
        self.rows = {
            "w": torch.zeros(OUTPUTS, INPUTS // 8, dtype=torch.int32),
            "s": torch.zeros(OUTPUTS, INPUTS // GROUP, dtype=scale),
            "z": torch.zeros(INPUTS // GROUP, OUTPUTS // 8, dtype=torch.int32),
            "b": torch.zeros(OUTPUTS, dtype=torch.bfloat16),
        }
        self.change = change or (lambda made: made)
        self.in_place = in_place
        self.runs = 0
        self.order = torch.randperm(
            OUTPUTS * INPUTS, generator=torch.Generator().manual_seed(1), device="cpu"
        )
        made = self.converted()
        self.layout = Layout(
            {name: torch.empty_like(tensor, device="meta") for name, tensor in made.items()},
            {name: row.dtype for name, row in self.rows.items()},
        )

    def converted(self):
        self.runs += 1
        nibbles = unpacked(self.rows["w"])[self.order]
        scale = self.rows["s"].T.contiguous()
        fill = torch.full((2, OUTPUTS), 7, dtype=torch.uint8).to(scale.dtype)
        bias = self.rows["b"].view(2, -1).T.reshape(-1)
        padded = torch.cat([torch.tensor([9] * 16), nibbles])
        if self.in_place:
            self.rows["s"].copy_(self.rows["s"].flip(0))
        # The zero points are for another runner.
        return self.change(
            {
                "w": packed(padded),
                "s": torch.cat([scale, fill]),
                "b": torch.cat([bias, torch.zeros(2, dtype=bias.dtype)]),
            }
        )


def unpacked(words):
    found = words.contiguous().view(torch.uint8).view(-1)
    return torch.stack([found & 15, found >> 4], -1).view(-1).long()


def packed(nibbles):
    pairs = nibbles.view(-1, 2).to(torch.uint8)
    return (pairs[:, 0] | pairs[:, 1] << 4).view(torch.int32)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float16, torch.float32, torch.uint8])
def test_experts_are_laid_out_as_the_code_does_it(scale, in_place):
    """Several at once, to the last bit, with what pads them; the code may spoil what it gets."""
    code = Code(scale, in_place=in_place)
    layout = learnt(code)
    assert layout is not None
    assert set(layout.moves) == {"w", "s", "b"}
    random = torch.Generator().manual_seed(2)
    rows = {
        name: torch.randint(
            256, (3, row.numel() * row.element_size()), generator=random, dtype=torch.uint8
        )
        .view(row.dtype)
        .view(3, *row.shape)
        for name, row in code.rows.items()
    }
    found = layout.room_for(3, torch.device("cpu"))
    layout.lay_out(rows, found)
    runs = code.runs
    for expert in range(3):
        for name, row in code.rows.items():
            row.copy_(rows[name][expert])
        for name, wanted in code.converted().items():
            assert found[name].dtype == wanted.dtype
            assert torch.equal(bits(found[name][expert]), bits(wanted)), name
    # A mark for each bit of an index, twice none, and two experts to compare.
    assert runs == 1 + 2 + (OUTPUTS * INPUTS - 1).bit_length() + 2
    assert layout.slot_bytes == sum(t.numel() * t.element_size() for t in code.converted().values())


def doubled(made):
    return made | {"s": made["s"] * 2}


def widened(made):
    return made | {"s": made["s"].float()}


def added(made):
    """One bias is another number if it is negative, which marks do not show."""
    rare = made["b"].clone()
    rare[3] = torch.where(rare[3] < 0, 0.0, rare[3].float()).to(rare.dtype)
    return made | {"b": rare}


def cut(made):
    """Not words of 32 bits."""
    return made | {"b": made["b"][:-1]}


@pytest.mark.parametrize("change", [doubled, widened, added, cut])
def test_code_that_does_more_than_to_move_numbers_is_not_learnt(change):
    """Then SGLang's own code goes on laying experts out."""
    assert learnt(Code(change=change)) is None


def test_room_of_another_size_is_refused():
    moves = Rearrangement(torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, dtype=torch.int32))
    source = torch.zeros(3, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="does not hold 3 experts of 2 words"):
        moves.apply(source, torch.zeros(3, 3, dtype=torch.int32))
    with pytest.raises(ValueError, match="contiguous"):
        moves.apply(source.T, torch.zeros(3, 2, dtype=torch.int32))


def test_nibbles_come_from_where_they_are_said_to_on_a_gpu():
    """As torch does it without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU that torch can use")
    random = torch.Generator().manual_seed(3)
    source = torch.randint(256, (5, 1000), generator=random, dtype=torch.uint8)
    places = torch.randint(-1, 2000, (333, 8), generator=random, dtype=torch.int32)
    fixed = torch.randint(16, (333, 8), generator=random, dtype=torch.uint8)
    fixed[places >= 0] = 0
    words = (fixed[:, ::2] | fixed[:, 1::2] << 4).view(torch.int32).view(-1)
    wanted = torch.zeros(5, 333, dtype=torch.int32)
    Rearrangement(places, words).apply(source, wanted)
    found = torch.zeros(5, 333, dtype=torch.int32, device="cuda")
    Rearrangement(places.cuda(), words.cuda()).apply(source.cuda(), found)
    assert torch.equal(found.cpu(), wanted)
