"""Experts that the engine generates are byte for byte those that `ktd make-model` writes."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("sglang", reason="SGLang is not installed")

from ktd.cli.program import run
from ktd.sgl import weight_reader
from ktd.sgl.weight_file import WeightsUnreadable
from ktd.sgl.weight_reader import WeightReader
from ktd.shapes import catalogue, tensors
from ktd.shapes.qwen3_moe import ktd_tiny
from ktd.shapes.tensors import Form
from tests.live import LiveDaemon


@pytest.fixture(params=["read ahead", "views", "fp8", "int4"])
def folders(request, tmp_path, monkeypatch):
    """The same model twice; experts as views that are copied later, and scales beside weights."""
    if request.param == "views":
        monkeypatch.setattr(weight_reader, "_LEAST_VIEW", 1)
    monkeypatch.setattr(tensors, "GROUP", 32)  # what goes into its experts
    for form in (Form.FP8, Form.INT4):
        monkeypatch.setitem(catalogue._MODELS, form, catalogue._Row(ktd_tiny, 2, 8, 4, form))
    shape = request.param if request.param in ("fp8", "int4") else "ktd-tiny"
    made = []
    for kind in ("written", "generated"):
        folder = tmp_path / kind
        command = ["make-model", "--shape", shape, "--layers", "2", "--experts", kind, str(folder)]
        assert run(command) == 0
        made.append(folder)
    return made


def experts_of(folder):
    """By name, as SGLang's loader would copy them: half of the rows of each, then the rest."""
    reader = WeightReader(threads=3)
    found, reads = {}, []
    files = sorted(str(file) for file in folder.glob("*.safetensors"))
    for name, tensor in reader.tensors(files):
        if ".experts." not in name:
            continue
        memory = found[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        half = tensor.shape[0] // 2

        def load(tensor, memory=memory, half=half):
            memory[:half].copy_(tensor[:half])
            memory[half:].copy_(tensor[half:])

        reads += reader.load(load, tensor, lambda: None).reads
    for read in reads:
        read.result()
    reader.close()
    return found


def test_generated_experts_are_those_of_the_files(folders):
    """Names, types and bytes, also of parts of a tensor."""
    written, generated = map(experts_of, folders)
    assert set(written) == set(generated)
    assert len(written) >= 2 * 8 * 3
    for name, tensor in written.items():
        assert torch.equal(tensor.view(torch.uint8), generated[name].view(torch.uint8)), name


@pytest.mark.engine
def test_answers_are_the_same_whether_experts_were_written_or_generated(tmp_path):
    """Two daemons, half of the experts in slots, greedy tokens."""
    answers = []
    for kind in ("written", "generated"):
        folder = tmp_path / kind
        assert run(["make-model", "--shape", "ktd-tiny", "--experts", kind, str(folder)]) == 0
        with LiveDaemon("--gpu-experts-ratio", "0.5", model=folder) as daemon:
            body = {"model": "x", "prompt": "In the beginning", "max_tokens": 24, "logprobs": 1}
            body |= {"temperature": 0, "ignore_eos": True}
            choice = daemon.post("/v1/completions", body)["choices"][0]
        answers.append((choice["text"], choice["logprobs"]["token_logprobs"]))
    assert answers[0] == answers[1]
    assert len(answers[0][1]) == 24
    assert all(-20 < value < 0 for value in answers[0][1])


def test_generated_experts_cannot_be_mapped(tmp_path):
    """No file has them."""
    folder = tmp_path / "generated"
    assert run(["make-model", "--shape", "ktd-tiny", "--experts", "generated", str(folder)]) == 0
    reader = WeightReader(threads=1, mapped=True)
    with pytest.raises(WeightsUnreadable, match=r"none has .*experts.* which is generated"):
        list(reader.tensors(sorted(str(file) for file in folder.glob("*.safetensors"))))
    reader.close()
