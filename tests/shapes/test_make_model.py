"""`ktd make-model`: folders that other programs read, with and without the experts in them."""

import json
from types import SimpleNamespace

import pytest

from ktd.cli.exit_codes import ExitCode
from ktd.cli.program import run
from ktd.errors import ModelUnsupported
from ktd.model.checkpoint import read_checkpoint
from ktd.model.facts import read_facts
from ktd.shapes import writer
from ktd.shapes.catalogue import model_shape
from ktd.shapes.generated import INDEX, weights_are_generated
from ktd.shapes.values import ValueSource
from tests.live import MODEL

SMALL = ("--shape", "ktd-tiny", "--layers", "2", "--num-experts", "8")


def make(folder, *more):
    assert run(["make-model", *SMALL, *more, str(folder)]) == ExitCode.OK
    return folder


@pytest.fixture
def written(tmp_path):
    return make(tmp_path / "written")


@pytest.fixture
def generated(tmp_path):
    return make(tmp_path / "generated", "--experts", "generated")


def test_safetensors_reads_what_was_generated(written):
    """Every tensor, with its type, shape and bytes."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    tensors = {}
    for file in written.glob("*.safetensors"):
        tensors |= safetensors.load_file(file)
    shape, source = model_shape("ktd-tiny", layers=2, num_experts=8), ValueSource(0)
    assert set(tensors) == {tensor.name for tensor in shape.tensors}
    for number, tensor in enumerate(shape.tensors):
        found = tensors[tensor.name]
        assert tuple(found.shape) == tensor.shape
        raw = found.contiguous().view(torch.uint8).numpy().tobytes()
        assert raw == b"".join(source.parts(tensor, number, 0, tensor.num_bytes))


def test_both_folders_are_the_same_model_to_the_daemon(written, generated):
    """Memory is estimated, and formats are checked, without the experts' bytes."""
    one, other = (read_facts(folder, device="cpu") for folder in (written, generated))
    assert (one.expert_bytes, one.other_bytes) == (other.expert_bytes, other.other_bytes)
    assert read_checkpoint(written).expert_bytes == read_checkpoint(generated).expert_bytes > 0
    assert one.total_experts == 16


def test_both_folders_say_that_their_weights_were_generated(written, generated, tmp_path):
    """As a benchmark has to print it; a checkpoint that somebody trained does not."""
    for folder in (written, generated):
        assert weights_are_generated(folder)
    assert not weights_are_generated(MODEL)
    for text in ("no JSON", "[]", "{}", '{"metadata": "ktd make-model"}', '{"metadata": {}}'):
        (tmp_path / INDEX).write_text(text)
        assert not weights_are_generated(tmp_path), text


def test_the_tokenizer_takes_any_text_and_shows_every_id(written):
    """Streams of a model without meaning must have a word for each token."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(written)
    text = "Grüße, 世界!\n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 2048
    assert all(tokenizer.decode([number]) for number in range(1, 2048))
    assert "user" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    )


def test_large_models_are_split_into_files(tmp_path, monkeypatch):
    """An index says what is where, and nothing is lost."""
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1 << 20)
    folder = make(tmp_path / "m")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(
        tensor.num_bytes for tensor in model_shape("ktd-tiny", layers=2, num_experts=8).tensors
    )
    assert read_facts(folder, device="cpu").total_experts == 16


def test_json_says_what_was_written(tmp_path, capsys):
    """For programs."""
    folder = make(tmp_path / "m", "--json", "--seed", "7")
    about = json.loads(capsys.readouterr().out)
    assert (about["folder"], about["seed"], about["files"]) == (str(folder), 7, 1)
    assert about["written_bytes"] > about["expert_bytes"] > 0


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    """With what to do instead."""
    usage = SimpleNamespace(free=64 << 30)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    code = run(["make-model", "--shape", "qwen3-next-80b-a3b-fp8", str(tmp_path / "m")])
    assert code == ExitCode.REFUSED
    said = capsys.readouterr().err
    assert "64.0 GiB free: --experts generated writes no experts" in said
    assert not (tmp_path / "m").exists()


def test_a_folder_with_something_in_it_is_left_alone(written, capsys):
    """Never over somebody's model."""
    assert run(["make-model", *SMALL, str(written)]) == ExitCode.USAGE
    assert "exists and is no empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{}", '{"version": 99, "shape": "a", "layers": 1}', "nonsense"])
def test_a_description_that_cannot_be_followed_is_named(generated, text):
    """Half a file, or one of another version."""
    (generated / "ktd_generated.json").write_text(text)
    with pytest.raises(ModelUnsupported, match=r"ktd_generated\.json"):
        read_facts(generated, device="cpu")
