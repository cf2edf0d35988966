"""Engines whose experts stay in the checkpoint's files, beside engines that copied them."""

import importlib.metadata
import json
import os
import re
import shutil
from http.client import HTTPException
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="SGLang is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from safetensors.torch import load_file, save_file

from tests.live import MODEL
from tests.sgl import quantised_models, tiny_models
from tests.sgl.live_host import LiveHost

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

# A start takes long: these run always, the others in the soak run.
ALWAYS = ("fp8_block",)
WIDTH = 512
TEXTS = [list(range(3, 40)), list(range(200, 220)), [7, 8]]
SWAPS = [(0, 0, 3), (1, 1, 2)]


def wide_model(folder):
    """ktd-tiny with wider experts: so many bytes of them that they show in a process's memory."""
    shutil.copytree(MODEL, folder)
    config = json.loads((folder / "config.json").read_text())
    config["moe_intermediate_size"] = WIDTH
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if ".experts." in name:
            shape = (tensor.shape[0], WIDTH) if "down" in name else (WIDTH, tensor.shape[1])
            tensors[name] = (torch.randn(shape, generator=random) * 0.02).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def memory_of(pid):
    """Resident anonymous and file bytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return [
        int(re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)[1]) << 10
        for name in ("RssAnon", "RssFile")
    ]


def run(host_memory, texts, *, tokens=0, **engine):
    """Everything an engine says, before and after a swap; its hello; and what memory it took."""
    with LiveHost(host_memory=host_memory, **engine) as host:
        host.ready()
        hello = host.ranks()[0].hello()
        memory = memory_of(hello["pid"])
        said = []
        for batch in (1, 2):
            said += map(host.logprobs, texts)
            if tokens:
                said.append(host.generate(tokens))
            if batch == 1:
                host.swap(batch, SWAPS)
        return said, hello, memory


def test_answers_are_the_same_bits_and_memory_is_less_by_the_experts(tmp_path):
    """BF16, tokens and log-probabilities, with some experts in slots and others moved there."""
    engine = {"model": wide_model(tmp_path / "wide"), "slots": 8, "in_slots": 2}
    copied, copy_hello, copy_memory = run("copy", TEXTS, tokens=24, **engine)
    mapped, map_hello, map_memory = run("mmap", TEXTS, tokens=24, **engine)
    assert mapped == copied
    size = copy_hello["host_store_bytes"]
    assert map_hello["host_store_bytes"] == size == 6 * 32 * 3 * 256 * WIDTH * 2
    assert (copy_hello["host_copied_bytes"], map_hello["host_copied_bytes"]) == (size, 0)
    saved = copy_memory[0] - map_memory[0]
    assert 0.7 * size <= saved <= 1.3 * size
    assert map_memory[1] - copy_memory[1] >= 0.7 * size


@pytest.mark.skipif(
    importlib.metadata.version("sglang") == "0.5.17",
    reason="quantised experts without a GPU need SGLang 0.5.23",
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ALWAYS else pytest.mark.soak)
        for name in sorted(quantised_models.RECIPES)
    ],
)
def test_quantised_experts_stay_in_the_files_with_the_same_answers(name, tmp_path):
    """What is copied is no weight."""
    made = quantised_models.build(name, tmp_path)
    engine = {
        "model": tmp_path / "quantised",
        "moe_layers": made.moe_layers,
        "num_experts": made.num_experts,
        "slots": made.num_experts,
        "in_slots": 2,
    }
    texts = tiny_models.some_texts()
    copied, copy_hello, _ = run("copy", texts, **engine)
    mapped, map_hello, _ = run("mmap", texts, **engine)
    assert mapped == copied
    assert map_hello["host_copied_bytes"] < copy_hello["host_copied_bytes"] / 3


def test_a_file_that_is_cut_off_while_it_is_used_is_named(tmp_path):
    """The engine dies of it, as it must, and the sentence is there for the daemon."""
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    with LiveHost(model=model, slots=4, in_slots=2, host_memory="mmap") as host:
        host.ready()
        before = host.logprobs(TEXTS[0])
        assert len(before) == len(TEXTS[0]) - 1
        os.truncate(model / "model.safetensors", 0)
        with pytest.raises((OSError, HTTPException, AssertionError)):
            host.logprobs(TEXTS[0])
        failure = host.ended()
    assert failure.kind == "internal"
    assert failure.message.startswith(f"{model}/model.safetensors became shorter, or its disk fail")


@pytest.mark.soak
def test_two_ranks_map_their_parts_of_one_file(tmp_path):
    """Rows of gate and up, columns of down, which are rows apart in the file."""
    engine = {"slots": 4, "in_slots": 3}
    said = []
    for host_memory in ("copy", "mmap"):
        with LiveHost("--tp-size", "2", host_memory=host_memory, **engine) as host:
            host.ready()
            hellos = [rank.hello() for rank in host.ranks()]
            assert len(hellos) == 2
            copied = {hello["host_copied_bytes"] for hello in hellos}
            whole = hellos[0]["host_store_bytes"]
            assert copied == ({whole} if host_memory == "copy" else {0})
            host.swap(1, [(0, 0, 3)])
            said.append([host.logprobs(ids) for ids in TEXTS])
    assert said[0] == said[1]
