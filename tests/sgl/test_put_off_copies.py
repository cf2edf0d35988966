"""Whatever a loader does with a view of a file, it gets the bytes, and never through a mapping."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from ktd.sgl.put_off_copies import PutOffCopies

ROWS, COLUMNS = 6, 8


class Bytes:
    """A file whose mapping has zeros, as that of generated experts: reading it shows."""

    def __init__(self):
        self.view = torch.zeros(ROWS, COLUMNS)
        self.truth = torch.arange(1.0, ROWS * COLUMNS + 1).view(ROWS, COLUMNS)

    def file_of(self, tensor):
        same = tensor.untyped_storage().data_ptr() == self.view.untyped_storage().data_ptr()
        return self if same else None

    def read(self, source):
        return self.truth.as_strided(source.shape, source.stride(), source.storage_offset()).clone()

    def fill(self, destination, source):
        destination.copy_(self.read(source))


def rows_of_a_rank(to, view):
    assert (view.shape, view.dtype, view.device.type, view.dim()) == (
        (ROWS, COLUMNS),
        torch.float32,
        "cpu",
        2,
    )
    to.narrow(0, 0, 3).copy_(view.narrow(0, 3, 3))


def columns_of_a_rank(to, view):
    to.narrow(1, 4, 4).copy_(view.narrow(1, 0, 4))


def indexed(to, view):
    to.data[1:3] = view[2:4]


def indexed_with_itself(to, view):
    to.copy_(view[view[:, 0].argsort(descending=True)])


def chunks(to, view):
    first, second = view.chunk(2, dim=0)
    to[:3].copy_(second)
    to[3:].copy_(first)


def split_and_stacked(to, view):
    to.copy_(torch.cat(list(reversed(view.split(2)))))


def transposed(to, view):
    to.view(-1).view(COLUMNS, ROWS).copy_(view.t())


def transposed_and_copied(to, view):
    to.view(-1).copy_(view.t().contiguous().view(-1))


def of_another_type(to, view):
    to.copy_(view.to(torch.float64))


def scaled(to, view):
    to.copy_(view * 2 + view.sum())


def scaled_after(to, view):
    to.copy_(view)
    to.mul_(3)


def looked_at_after(to, view):
    to[:3].copy_(view[:3])
    to[3:].fill_(float(to[:3].sum()) + float(view[0, 0]))


def indexed_and_looked_at(to, view):
    to.data[:3] = view[:3]
    to[3:].fill_(float(to[:3].sum()))


def copied_with_an_option_and_looked_at(to, view):
    to.copy_(view, non_blocking=True)
    to.add_(to.sum())


def item_by_item(to, view):
    to[0, 0] = view[1, 1].item()
    to[0, 1] = float(view.max())
    to[1] = torch.tensor(view[2].tolist())
    to[2] = torch.from_numpy(view.numpy()[3].copy())


def twice(to, view):
    to[:3].copy_(view[:3])
    to[3:].copy_(view[3:])
    to[:1].copy_(view[5:])


def as_the_target_of_an_operator(to, view):
    torch.add(view, 1.0, out=to)


def past_torchs_python_functions(to, view):
    with torch._C.DisableTorchFunctionSubclass():
        to.copy_(view)


def nothing(_to, _view):
    pass


LOADERS = [
    rows_of_a_rank,
    columns_of_a_rank,
    indexed,
    indexed_with_itself,
    chunks,
    split_and_stacked,
    transposed,
    transposed_and_copied,
    of_another_type,
    scaled,
    scaled_after,
    looked_at_after,
    indexed_and_looked_at,
    copied_with_an_option_and_looked_at,
    item_by_item,
    twice,
    as_the_target_of_an_operator,
    past_torchs_python_functions,
    nothing,
]


@pytest.mark.parametrize("load", LOADERS, ids=lambda load: load.__name__)
def test_a_loader_does_what_it_would_do_with_the_bytes(load):
    """Copies that were put off are made up for behind it, as the reading threads do."""
    file = Bytes()
    wanted, found = torch.full((2, ROWS, COLUMNS), -1.0)
    load(wanted, file.truth.clone())
    copies = PutOffCopies(file)
    copies.watch(lambda view: load(found, view), file.view)
    for destination, source in copies.jobs:
        assert type(destination) is type(source) is torch.Tensor
        file.fill(destination, source)
    assert torch.equal(found, wanted)
    assert not file.view.any()


@pytest.mark.parametrize(
    ("load", "count"),
    [(rows_of_a_rank, 1), (columns_of_a_rank, 1), (chunks, 2), (twice, 3), (indexed, 1)],
)
def test_plain_copies_are_put_off(load, count):
    """And nothing is read meanwhile."""
    file = Bytes()
    copies = PutOffCopies(file)
    copies.watch(lambda view: load(torch.zeros(ROWS, COLUMNS), view), file.view)
    assert len(copies.jobs) == count
    assert not copies.materialised


def test_a_loader_that_fails_leaves_no_mode_behind():
    """Its error comes through, and later operators are nobody's business."""
    file = Bytes()
    copies = PutOffCopies(file)

    def load(view):
        torch.zeros(ROWS, COLUMNS).copy_(view)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        copies.watch(load, file.view)
    torch.zeros(ROWS, COLUMNS).copy_(file.view)
    assert len(copies.jobs) == 1
