"""Half-downloaded checkpoints are recognised by their headers and sizes."""

from __future__ import annotations

import pytest

from ktd.errors import ModelUnsupported
from ktd.model.checkpoint import read_checkpoint
from tests.model.conftest import tensors_of, write_safetensors


def test_a_complete_checkpoint(folder):
    """Files, types and sizes."""
    checkpoint = read_checkpoint(folder.path)
    assert checkpoint.files == ("a.safetensors", "b.safetensors")
    assert checkpoint.expert_dtypes == ("BF16",)
    assert checkpoint.has_head


def test_a_missing_file(folder):
    """Named, with how many."""
    (folder.path / "b.safetensors").unlink()
    with pytest.raises(
        ModelUnsupported, match=r"half-downloaded: 1 of 2 .* missing, for example b\.safetensors"
    ):
        read_checkpoint(folder.path)


@pytest.mark.parametrize("cut", [1, 100, 1400])
def test_a_short_file(folder, cut):
    """The sentence has the file and both byte counts, wherever it was cut."""
    write_safetensors(folder.path / "a.safetensors", tensors_of(0), cut=cut)
    actual = (folder.path / "a.safetensors").stat().st_size
    with pytest.raises(
        ModelUnsupported,
        match=rf"a\.safetensors has {actual:,} of [\d,]+ bytes",
    ):
        read_checkpoint(folder.path)


@pytest.mark.parametrize("data", [b"", b"\x01\x00", b"\xff" * 40, b"<html>not found</html>" * 9])
def test_a_file_that_is_something_else(folder, data):
    """An error page, or nothing at all."""
    (folder.path / "a.safetensors").write_bytes(data)
    with pytest.raises(ModelUnsupported, match=r"a\.safetensors"):
        read_checkpoint(folder.path)


def test_a_tensor_that_the_index_promises(folder):
    """A file of an older upload beside a newer index."""
    folder.index(**{"model.extra.weight": "a.safetensors"})
    with pytest.raises(ModelUnsupported, match=r"model\.extra\.weight"):
        read_checkpoint(folder.path)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"x": "../y"}}'])
def test_a_broken_index(folder, text):
    """Not JSON, without a map, empty, or pointing elsewhere."""
    (folder.path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelUnsupported, match=r"index\.json"):
        read_checkpoint(folder.path)


def test_pickled_weights_are_refused(tmp_path):
    """They are not read, so they cannot run anything."""
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelUnsupported, match="pickled"):
        read_checkpoint(tmp_path)


def test_no_weights(tmp_path):
    """A folder with a configuration only."""
    with pytest.raises(ModelUnsupported, match="has no weights"):
        read_checkpoint(tmp_path)
