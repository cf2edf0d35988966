"""SGLang's list of experts' names, walked from the expert in hand on: the same matches."""

import itertools
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktd.enginespec import EngineSpec
from ktd.sgl.expert_location import physical_experts
from ktd.sgl.expert_mapping import ExpertMapping
from ktd.sgl.seam import EXPERT_MAPPING, SchedulerHooks

EXPERTS = 13
SUFFIXES = ("weight", "weight_scale_inv", "bias", "qweight", "input_scale")
AT = "model.layers.3.mlp."


def entries_of(gate, down, up, count=EXPERTS):
    """As FusedMoE.make_expert_params_mapping makes them; a test below compares."""
    return [
        (
            "experts.w13_" if part in (gate, up) else "experts.w2_",
            f"experts.{expert}.{part}.",
            expert,
            shard,
        )
        for expert in range(count)
        for shard, part in (("w1", gate), ("w2", down), ("w3", up))
    ]


def parts_in_sglang():
    """Every (gate, down, up) that a model of the installed SGLang asks for in its source."""
    folder = Path(find_spec("sglang").origin).parent / "srt" / "models"
    call = re.compile(
        r"make_expert_params_mapping\(\s*ckpt_gate_proj_name=\"(.*?)\",\s*"
        r"ckpt_down_proj_name=\"(.*?)\",\s*ckpt_up_proj_name=\"(.*?)\""
    )
    return sorted(
        {found for path in folder.rglob("*.py") for found in call.findall(path.read_text())}
    )


def matches(mapping, name):
    """What a walk meets whose every entry is asked."""
    return [entry for entry in mapping if entry[1] in name]


def first(mapping, name):
    """What a walk stops at."""
    return next((entry for entry in mapping if entry[1] in name), None)


def names_of(parts):
    """Names of experts, of none, of experts that are not there, and with two numbers."""
    yield from (f"{AT}experts.{e}.{p}.{s}" for e in range(EXPERTS) for p in parts for s in SUFFIXES)
    yield from (f"{AT}experts.{e}.{p}.weight" for e in (EXPERTS, 100) for p in parts)
    yield from (f"{AT}shared_experts.{p}.weight" for p in parts)
    yield from (f"{AT}shared_experts.2.{p}.weight" for p in parts)
    yield from (f"{AT}experts.1.{a}.experts.12.{b}.weight" for a in parts for b in parts)
    yield from (f"{AT}experts.12.{a}.experts.1.{b}.weight" for a in parts for b in parts)
    yield from ("", "model.norm.weight", f"{AT}experts.gate_up_proj", f"{AT}experts.1.", "experts")


def mappings():
    """Those of SGLang's models, with and without the names that some of them append."""
    for parts in (*parts_in_sglang(), ("w1", "w2", "w3"), ("up_proj", "down_proj", "")):
        yield pytest.param(parts, entries_of(*parts), id="-".join(parts))
        appended = entries_of(*parts) + entries_of("w1", "w2", "w3")
        yield pytest.param(parts, appended, id="-".join(parts) + "-appended")


@pytest.mark.parametrize(("parts", "entries"), mappings())
def test_a_walk_meets_the_same_entries_in_the_same_order(parts, entries):
    """Whatever is in hand: the name that is looked for, its source, another one, nothing."""
    in_hand = [""]
    mapping = ExpertMapping(entries, lambda: in_hand[0])
    names = list(dict.fromkeys(names_of(parts)))
    others = [
        names[0],
        names[len(names) // 3],
        "model.norm.weight",
        f"{AT}experts.1.x.experts.12.y",
    ]
    for name in names:
        for in_hand[0] in (name, *others):
            assert matches(mapping, name) == matches(entries, name), (name, in_hand)
            assert first(mapping, name) == first(entries, name), (name, in_hand)


def test_a_walk_begins_with_the_expert_in_hand_and_leaves_nothing_out():
    """So that whoever stops at the first match takes at most three steps."""
    entries = entries_of("gate_proj", "down_proj", "up_proj", 512)
    mapping = ExpertMapping(entries, lambda: f"{AT}experts.300.up_proj.weight")
    assert list(itertools.islice(mapping, 3)) == entries[900:903]
    assert sorted(mapping) == sorted(entries)
    assert len(list(mapping)) == len(entries) == len(mapping)


def test_what_a_model_appends_later_is_found():
    """DeepSeek appends names of input scales once it knows the checkpoint."""
    mapping = ExpertMapping(entries_of("a", "b", "c"), lambda: "experts.4.w2.input_scale")
    assert first(mapping, "experts.4.w2.input_scale") is None
    mapping += entries_of("w1", "w2", "w3")
    assert isinstance(mapping, ExpertMapping)
    assert mapping[0][1] == "experts.0.a."
    assert next(iter(mapping))[2] == 4
    assert first(mapping, "experts.4.w2.input_scale")[1] == "experts.4.w2."


@pytest.mark.parametrize(
    "other",
    [
        ("experts.w13_weight", "experts.gate_up_proj", "w13"),
        ("w13", "model.experts.3.gate_proj.", 3, "w1"),
        ("only one",),
        {"weight_name": "experts.3.gate_proj."},
    ],
)
def test_entries_of_another_kind_leave_the_order_as_it_is(other):
    """Nobody knows what they would match."""
    entries = [*entries_of("a", "b", "c"), other]
    assert list(ExpertMapping(entries, lambda: f"{AT}experts.3.a.weight")) == entries


@pytest.fixture
def hooks(tmp_path):
    return SchedulerHooks(
        EngineSpec(
            engine_id="t-1",
            runtime_dir=str(tmp_path),
            model_path="/nowhere",
            sglang_args=(),
            device="cpu",
            moe_layers=(0,),
            num_experts=4,
            experts_per_token=1,
            slots=(2,),
            initial=((),),
        )
    )


def test_the_seam_follows_the_reader(hooks, tmp_path):
    """Before, while and after tensors are read; and leaves alone what is no list."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    entries = entries_of("gate_proj", "down_proj", "up_proj", 4)
    mapping = hooks.after_expert_mapping(entries)
    assert list(mapping) == entries
    file = tmp_path / "some.safetensors"
    names = [f"{AT}experts.{expert}.up_proj.weight" for expert in range(4)]
    safetensors.save_file({name: torch.zeros(2) for name in names}, file)
    firsts = [next(iter(mapping))[2] for _ in hooks.read_weights([str(file)])]
    assert firsts == [0, 1, 2, 3]
    hooks.after_load_model(None, None)
    assert list(mapping) == entries
    assert hooks.after_expert_mapping({}) == {}


@pytest.mark.filterwarnings("ignore")
def test_sglangs_own_list_is_of_this_kind_and_its_hook_is_called(hooks, monkeypatch):
    """As a class method, on the class and on those that inherit it, by name and by position."""
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    ask = {
        "ckpt_gate_proj_name": "gate_proj",
        "ckpt_down_proj_name": "down_proj",
        "ckpt_up_proj_name": "up_proj",
        "num_experts": 5,
    }
    own = FusedMoE.make_expert_params_mapping(**ask)
    assert own == entries_of("gate_proj", "down_proj", "up_proj", 5)
    monkeypatch.setattr(
        FusedMoE, "make_expert_params_mapping", FusedMoE.__dict__["make_expert_params_mapping"]
    )
    monkeypatch.setattr(HookRegistry, "_hooks", {})
    monkeypatch.setattr(HookRegistry, "_patched", set())
    hook = (HookType.AFTER, hooks.after_expert_mapping, None)
    HookRegistry._hooks[EXPERT_MAPPING] = [hook]
    HookRegistry.apply_hooks()
    inheriting = type("Inheriting", (FusedMoE,), {})
    for owner in (FusedMoE, inheriting):
        for mapping in (
            owner.make_expert_params_mapping(**ask),
            owner.make_expert_params_mapping(*ask.values()),
        ):
            assert type(mapping) is ExpertMapping
            assert list(mapping) == own


def test_sglangs_models_are_looked_through():
    """The sources are where they are looked for."""
    found = parts_in_sglang()
    assert {("gate_proj", "down_proj", "up_proj"), ("w1", "w2", "w3")} <= set(found)


@pytest.mark.filterwarnings("ignore")
def test_an_experts_places_are_those_that_sglang_lists():
    """With copies, without, beyond the map's layers, and where all copies are asked for."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from sglang.srt.eplb.expert_location import ExpertLocationMetadata

    places = torch.full((2, EXPERTS, EXPERTS + 2), -1)
    places[:, :, 0] = torch.arange(EXPERTS)
    places[1, 3, 1] = EXPERTS + 1
    places[1, 4, 0], places[1, 4, 5] = -1, 9
    metadata = SimpleNamespace(logical_to_all_physical_map_cpu=places, num_logical_experts=EXPERTS)
    original = ExpertLocationMetadata.logical_to_all_physical
    for layer, expert in itertools.product(range(4), range(EXPERTS)):
        for more in ((), (False,), (True,)):
            found = physical_experts(original, metadata, layer, expert, *more)
            assert found == original(metadata, layer, expert, *more), (layer, expert, more)
            assert all(type(place) is int for place in found)
        by_name = physical_experts(original, metadata, layer, expert, require_global_experts=True)
        assert by_name == original(metadata, layer, expert, require_global_experts=True)
