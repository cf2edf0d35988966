"""Reading activation statistics from what operators have: recorder files, tensors, JSON."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ktd.errors import ConfigError
from ktd.stats.files import read_counts
from ktd.stats.profile import Profile, ProfileShape, encoded

SHAPE = ProfileShape(num_layers=4, moe_layers=(1, 3), num_experts=3)
GOLDEN = Path(__file__).parent / "golden" / "recorder_stat.pt"


def test_recorder_file_is_summed_over_its_buffer_and_cut_to_the_moe_layers():
    """A golden file of SGLang's form gives the MoE layers' counts without torch."""
    assert read_counts(GOLDEN, SHAPE) == [[33, 44, 55], [99, 110, 121]]


def test_file_with_moe_layers_only_is_accepted():
    """Rows may be the MoE layers alone."""
    shape = ProfileShape(num_layers=9, moe_layers=(2, 4, 6, 8), num_experts=3)
    assert read_counts(GOLDEN, shape)[0] == [0, 11, 22]


def test_file_of_another_model_is_refused_with_both_shapes():
    """The message names the file's shape and the model's."""
    shape = ProfileShape(num_layers=6, moe_layers=(0, 1, 2, 3, 4, 5), num_experts=64)
    with pytest.raises(ConfigError, match=r"\[5, 4, 3\].*\[6, 64\]"):
        read_counts(GOLDEN, shape)


def test_missing_file_is_one_sentence():
    """A path that does not exist names itself and the flag."""
    with pytest.raises(ConfigError, match=r"nowhere\.pt cannot be read.*--init-expert-location"):
        read_counts(Path("nowhere.pt"), SHAPE)


def test_other_suffix_is_refused(tmp_path):
    """A bare name is one, too: whoever misspelt a profile's reads that it is none."""
    path = tmp_path / "weekday"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"neither a file of activation statistics .* a profile"):
        read_counts(path, SHAPE)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def _archive(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression=compression) as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/data/0", b"\0" * 8 * 12)
    return path


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_is_refused_by_name_and_not_executed(tmp_path, protocol):
    """The function it wants to call is named; the command does not run."""
    proof = tmp_path / "executed"
    data = pickle.dumps({"logical_count": Evil(f"touch {proof}")}, protocol=protocol)
    path = _archive(tmp_path / "evil.pt", data)
    with pytest.raises(ConfigError, match=r"contains posix\.system"):
        read_counts(path, SHAPE)
    assert not proof.exists()


def _tensor_pickle(shape, stride, *, length=12, code="LongStorage"):
    """The pickle of one tensor over storage ``0``, as torch writes it but with any numbers."""

    def number(value):
        return b"J" + value.to_bytes(4, "little")

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(X\x07\0\0\0storagectorch\n" + code.encode() + b"\nX\x01\0\0\x000X\x03\0\0\0cpu"
        + number(length) + b"tQ"
    )  # fmt: skip
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage + number(0) + numbers(shape) + numbers(stride) + b"\x89}tR."
    )  # fmt: skip


def test_hand_made_tensor_is_read(tmp_path):
    """The forger below makes files that are good unless told otherwise."""
    path = _archive(tmp_path / "t.pt", _tensor_pickle((4, 3), (3, 1)))
    assert read_counts(path, SHAPE) == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_tensor_pickle((1000000, 4, 3), (0, 3, 1)), id="repeats elements"),
        pytest.param(_tensor_pickle((4, 3), (300, 1)), id="beyond its storage"),
        pytest.param(_tensor_pickle((4, 3), (3, 1), length=99), id="wrong length"),
        pytest.param(_tensor_pickle((4, 3), (3,)), id="ragged"),
        pytest.param(b"\x80\x02}", id="no end"),
        pytest.param(b"\x80\x02.", id="empty stack"),
        pytest.param(b"\x80\x02h\x05.", id="unknown memo"),
        pytest.param(b"\x80\x02a.", id="append to nothing"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b"\x80\x02ctorch\nLongStorage\n)R.", id="calls a storage"),
        pytest.param(b"\x80\x02}}b.", id="sets state"),
    ],
)
def test_malformed_archive_is_one_sentence(tmp_path, data):
    """Whatever is wrong inside, the user hears that it is no torch file."""
    path = _archive(tmp_path / "bad.pt", data)
    with pytest.raises(ConfigError, match="not a file that torch"):
        read_counts(path, SHAPE)


def test_compressed_archive_is_refused(tmp_path):
    """Torch stores without compression, so a bomb cannot hide."""
    path = _archive(
        tmp_path / "bomb.pt", _tensor_pickle((4, 3), (3, 1)), compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ConfigError, match="is compressed"):
        read_counts(path, SHAPE)


def test_file_that_is_no_archive_is_refused(tmp_path):
    """A plain pickle, as old versions of torch wrote, is not read."""
    path = tmp_path / "old.pt"
    path.write_bytes(pickle.dumps({"logical_count": [[1]]}))
    with pytest.raises(ConfigError, match="not a file that torch"):
        read_counts(path, SHAPE)


def test_recording_without_a_pass_is_refused(tmp_path):
    """Of whatever mode it is."""
    path = _archive(tmp_path / "per_pass.pt", pickle.dumps({"records": []}, protocol=2))
    with pytest.raises(ConfigError, match="holds no pass"):
        read_counts(path, SHAPE)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def _per_pass(torch, counts, places):
    records = [{"forward_pass_id": i, "global_physical_count": one} for i, one in enumerate(counts)]
    return {"records": records, "last_physical_to_logical_map": places}


def test_passes_are_summed_over_the_physical_experts_of_a_logical_one(tmp_path, torch):
    """SGLang's EPLB may keep an expert twice; layers without experts are left out."""
    counts = torch.arange(16, dtype=torch.int32).reshape(4, 4)
    places = torch.tensor([[0, 1, 2, 0]] * 4)
    torch.save(_per_pass(torch, [counts, counts], places), tmp_path / "a.pt")
    assert read_counts(tmp_path / "a.pt", SHAPE) == [[2 * (4 + 7), 10, 12], [2 * 27, 26, 28]]


@pytest.mark.parametrize("place", [-1, 4, 2**40])
def test_passes_that_do_not_say_which_experts_they_count_are_refused(tmp_path, torch, place):
    """A number in a file sizes nothing."""
    places = torch.full((4, 4), place)
    torch.save(_per_pass(torch, [torch.zeros(4, 4)], places), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="does not say which experts"):
        read_counts(tmp_path / "a.pt", SHAPE)


def test_passes_of_another_model_are_refused_with_both_shapes(tmp_path, torch):
    """As recordings of mode stat are."""
    places = torch.arange(8).repeat(5, 1)
    torch.save(_per_pass(torch, [torch.ones(5, 8)], places), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"\[5, 8\].*\[2 or 4, 3\]"):
        read_counts(tmp_path / "a.pt", SHAPE)


def test_nested_lists_by_themselves_and_a_profile_are_read(tmp_path):
    """What a user may have written, and what ktd keeps; prefill and decode are added up."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps([[1, 2, 3], [4, 5, 6]]))
    assert read_counts(path, SHAPE) == [[1, 2, 3], [4, 5, 6]]
    counts = np.arange(12).reshape(2, 2, 3)
    profile = Profile("night", 5.0, "some/model", SHAPE, counts)
    path.write_text(json.dumps(encoded(profile)))
    assert read_counts(path, SHAPE) == counts.sum(axis=0).tolist()


def test_a_profile_of_another_model_is_refused_with_both_shapes(tmp_path):
    """And says which model it is of."""
    profile = Profile("x", 5.0, "some/model", ProfileShape(1, (0,), 7), np.zeros((2, 1, 7), int))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(encoded(profile)))
    shapes = r"1 MoE layers of 7 experts \(some/model\).*2 MoE layers of 3 experts"
    with pytest.raises(ConfigError, match=shapes):
        read_counts(path, SHAPE)


@pytest.mark.parametrize(
    "change", [{"ktd_profile": 9}, {"prefill": [[1]]}, {"decode": "x"}, {"num_experts": None}]
)
def test_a_damaged_profile_is_refused(tmp_path, change):
    """With a sentence."""
    profile = Profile("x", 5.0, "m", SHAPE, np.ones((2, 2, 3), int))
    path = tmp_path / "a.json"
    path.write_text(json.dumps(encoded(profile) | change))
    with pytest.raises(ConfigError, match="is not a profile that this version can read"):
        read_counts(path, SHAPE)


def test_json_of_ktd_stats_is_read(tmp_path):
    """What `ktd stats --json` prints can be given back, in any order of layers."""
    path = tmp_path / "stats.json"
    layers = [{"layer": 3, "counts": [4, 5, 6]}, {"layer": 1, "counts": [1, 2, 3]}]
    path.write_text(json.dumps({"revision": 3, "layers": layers}))
    assert read_counts(path, SHAPE) == [[1, 2, 3], [4, 5, 6]]


def test_json_of_ktd_stats_for_another_model_is_refused_with_both_shapes(tmp_path):
    """Layers and experts of both are named."""
    path = tmp_path / "stats.json"
    path.write_text(json.dumps({"layers": [{"layer": 1, "counts": [1, 2]}]}))
    with pytest.raises(ConfigError, match=r"1 layers of 2 experts.*2 MoE layers of 3 experts"):
        read_counts(path, SHAPE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([[0, 0, 0], [1, 2, 3], [0, 0, 0], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),
        ([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),
        ([[[1, 2, 3], [4, 5, 6]], [[1, 1, 1], [1, 1, 1]]], [[2, 3, 4], [5, 6, 7]]),
    ],
    ids=["all layers", "MoE layers", "buffer"],
)
def test_json_of_logical_counts_is_read(tmp_path, value, expected):
    """Two and three dimensions, all layers or MoE layers."""
    path = tmp_path / "counts.json"
    path.write_text(json.dumps({"logical_count": value}))
    assert read_counts(path, SHAPE) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"physical_to_logical_map": []}', "no 'logical_count'"),
        ('{"logical_count": [[1, 2], [3]]}', "rows of equal length"),
        ('{"logical_count": "x"}', "rows of equal length"),
        ('{"logical_count": [[1, 2, -3], [1, 2, 3]]}', "negative"),
        ('{"logical_count": [[1, 2, NaN], [1, 2, 3]]}', "not a number"),
        ('{"layers": [{"layer": 1}]}', "ktd stats --json"),
    ],
)
def test_bad_json_is_one_sentence(tmp_path, text, message):
    """Each way to be wrong says which one it is."""
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_counts(path, SHAPE)


@pytest.mark.parametrize("dtype", ["int32", "int64", "int16", "uint8", "float32", "float64"])
@pytest.mark.parametrize("kind", ["dict", "tensor"])
def test_files_that_torch_writes_are_read_as_torch_reads_them(tmp_path, dtype, kind):
    """Every number type that counts come in, contiguous and not, alone and in a dict."""
    torch = pytest.importorskip("torch", reason="needs torch to write the file")
    counts = torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype)).transpose(1, 2)
    assert not counts.is_contiguous()
    path = tmp_path / "counts.pt"
    torch.save({"logical_count": counts, "rank": 0} if kind == "dict" else counts, path)
    assert read_counts(path, SHAPE) == counts.sum(0)[[1, 3]].tolist()


def test_two_dimensional_tensor_is_read(tmp_path):
    """KTransformers wants three dimensions; a plain table is as good."""
    torch = pytest.importorskip("torch", reason="needs torch to write the file")
    path = tmp_path / "counts.pt"
    torch.save(torch.arange(12).reshape(4, 3)[1::2].clone(), path)
    assert read_counts(path, SHAPE) == [[3, 4, 5], [9, 10, 11]]


def test_big_endian_file_is_read(tmp_path):
    """The archive says its byte order."""
    buffer = io.BytesIO(GOLDEN.read_bytes())
    path = tmp_path / "big.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            elif "/data/" in name:
                data = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
            target.writestr(name, data)
    assert read_counts(path, SHAPE) == [[33, 44, 55], [99, 110, 121]]
