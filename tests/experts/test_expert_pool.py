"""The pool as the engine uses it: torch tensors in, torch tensors out."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="the Python face of the pool takes torch tensors")

from ktd.errors import ConfigError  # noqa: E402 - after the skip
from ktd.experts.isa import isas  # noqa: E402
from ktd.experts.pool import ExpertPool  # noqa: E402

ALL_ISAS = [
    pytest.param(
        isa.name,
        marks=pytest.mark.skipif(
            not isa.supported,
            reason=f"this CPU cannot run the {isa.name} kernels, it lacks {' '.join(isa.missing)}",
        ),
    )
    for isa in isas()
]


class TestForward:
    @pytest.mark.parametrize("isa", ALL_ISAS)
    @pytest.mark.parametrize(
        "sizes",  # experts, hidden, intermediate, tokens, top_k
        [
            (32, 256, 64, 1, 4),  # ktd-tiny
            (32, 256, 64, 40, 4),
            (7, 131, 37, 5, 3),  # no multiple of anything
            (4, 1024, 512, 9, 2),  # large enough for more than one thread
        ],
    )
    def test_agrees_with_torch_in_float32(self, moe_step, isa, sizes):
        """Every ISA gives torch's answer within the bound that bf16 activations allow."""
        step = moe_step(*sizes)
        pool = ExpertPool(threads=2, isa=isa, cpus=sorted(os.sched_getaffinity(0)))
        out = pool.forward(pool.add_layer(step.experts), step.x, step.ids, step.weights)
        reference, bound = step.reference()
        assert pool.isa == isa
        assert ((out - reference).abs() <= bound).all()

    @pytest.mark.parametrize("isa", ALL_ISAS)
    def test_a_token_does_not_see_its_neighbours(self, moe_step, isa):
        """A token's result is the same bits alone, in a batch, and with other threads.

        AMX has another kernel from some number of tokens of an expert on, 32 at most, which each
        pool measures for itself: bits are the same on either side of that number.
        """
        step = moe_step(8, 512, 256, 40, 3)
        one, three = ExpertPool(threads=1, isa=isa), ExpertPool(threads=3, isa=isa)
        for pool in (one, three):
            pool.add_layer(step.experts)

        def forward(pool, tokens, ids=step.ids):
            return pool.forward(0, step.x[tokens], ids[tokens], step.weights[tokens])

        everything = slice(None)
        batch = forward(three, everything)
        alone = torch.cat([forward(one, slice(t, t + 1)) for t in range(40)])
        if isa != "amx":
            assert torch.equal(batch, alone)
            assert torch.equal(batch, forward(one, everything))
        assert torch.allclose(batch, alone, rtol=2**-6, atol=2**-6)
        assert torch.equal(alone, torch.cat([forward(three, slice(t, t + 1)) for t in range(40)]))
        # Forty tokens of each expert that is chosen.
        same = step.ids[1:2].repeat(40, 1)
        assert torch.equal(forward(one, everything, same), forward(three, everything, same))

    def test_two_halves_of_a_split_add_up(self, moe_step):
        """Computing some pairs here and the rest there is computing all of them."""
        step = moe_step(8, 96, 40, 6, 4)
        pool = ExpertPool(threads=1)
        layer = pool.add_layer(step.experts)
        here = torch.where(step.ids % 2 == 0, step.ids, -1)
        there = torch.where(step.ids % 2 == 1, step.ids, -1)
        parts = sum(pool.forward(layer, step.x, ids, step.weights) for ids in (here, there))
        whole = pool.forward(layer, step.x, step.ids, step.weights)
        assert torch.allclose(parts, whole, rtol=1e-5, atol=1e-6)

    def test_out_is_written_completely(self, moe_step):
        """A given out loses what it held, also for tokens without an expert of ours."""
        step = moe_step(4, 48, 16, 3, 2)
        pool = ExpertPool(threads=1)
        layer = pool.add_layer(step.experts)
        out = torch.full((3, 48), float("nan"))
        ids = torch.full_like(step.ids, -1)
        assert pool.forward(layer, step.x, ids, step.weights, out) is out
        assert torch.equal(out, torch.zeros(3, 48))

    def test_no_tokens_give_no_rows(self, moe_step):
        """An empty batch is answered, not refused."""
        step = moe_step(4, 48, 16, 1, 2)
        pool = ExpertPool(threads=1)
        layer = pool.add_layer(step.experts)
        empty = pool.forward(layer, step.x[:0], step.ids[:0], step.weights[:0])
        assert empty.shape == (0, 48)
        assert pool.bytes_read == 0

    def test_nan_stays_with_its_token(self, moe_step):
        """A NaN in one token's hidden state reaches that token's output and no other."""
        step = moe_step(4, 48, 16, 3, 2)
        step.x[1, 7] = float("nan")
        pool = ExpertPool(threads=1)
        out = pool.forward(pool.add_layer(step.experts), step.x, step.ids, step.weights)
        assert out.isnan().all(dim=1).tolist() == [False, True, False]
        assert out.isnan().any(dim=1).tolist() == [False, True, False]

    def test_callers_from_several_threads_take_turns(self, moe_step):
        """Concurrent callers get their own right answers."""
        step = moe_step(4, 1024, 256, 4, 2)
        pool = ExpertPool(threads=2)
        layer = pool.add_layer(step.experts)
        expected = pool.forward(layer, step.x, step.ids, step.weights)
        wrong = []

        def call():
            for _ in range(20):
                out = pool.forward(layer, step.x, step.ids, step.weights)
                if not torch.equal(out, expected):
                    wrong.append(out)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not wrong

    def test_bytes_read_count_each_expert_once_a_call(self, moe_step):
        """Two tokens that choose the same expert read it once."""
        step = moe_step(4, 48, 16, 2, 2)
        pool = ExpertPool(threads=1)
        layer = pool.add_layer(step.experts)
        ids = torch.tensor([[1, 3], [3, -1]], dtype=torch.int32)
        pool.forward(layer, step.x, ids, step.weights)
        assert pool.bytes_read == 2 * 3 * 48 * 16 * 2


class TestRefusals:
    @pytest.fixture(name="pool")
    def pool_fixture(self):
        return ExpertPool(threads=1)

    def test_an_expert_that_does_not_exist(self, moe_step, pool):
        """The sentence names token and expert; out keeps what it held."""
        step = moe_step(4, 48, 16, 3, 2)
        layer = pool.add_layer(step.experts)
        step.ids[2, 0] = 4
        out = torch.full((3, 48), 9.0)
        with pytest.raises(ValueError, match="token 2 asks for expert 4; layer 0 has experts 0"):
            pool.forward(layer, step.x, step.ids, step.weights, out)
        assert torch.equal(out, torch.full((3, 48), 9.0))

    def test_a_layer_that_does_not_exist(self, moe_step, pool):
        """A handle that add_layer did not give is refused."""
        step = moe_step(4, 48, 16, 3, 2)
        with pytest.raises(ValueError, match="no layer with handle 0: 0 exist"):
            pool.forward(0, step.x, step.ids, step.weights)

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("x", lambda t: t.float()),
            ("x", lambda t: t[:, :-1]),
            ("ids", lambda t: t.long()),
            ("ids", lambda t: t[:1]),
            ("weights", lambda t: t.double()),
            ("weights", lambda t: t.t().contiguous().t()),
        ],
    )
    def test_a_tensor_that_is_not_as_described(self, moe_step, pool, name, change):
        """Dtype, shape and order are checked before an address is passed on."""
        step = moe_step(4, 48, 16, 3, 2)
        layer = pool.add_layer(step.experts)
        tensors = {"x": step.x, "ids": step.ids, "weights": step.weights}
        tensors[name] = change(tensors[name])
        with pytest.raises(ValueError, match=f"{name} must be a contiguous"):
            pool.forward(layer, **tensors)

    def test_weights_that_do_not_belong_together(self, moe_step, pool):
        """w13 must have twice w2's intermediate rows."""
        step = moe_step(4, 48, 16, 3, 2)
        with pytest.raises(ValueError, match=re.escape("w13 must be a contiguous")):
            pool.add_layer(replace(step.experts, w13=step.w13[:, :-2].contiguous()))

    def test_an_unknown_isa(self):
        """The sentence lists what this CPU can run."""
        with pytest.raises(ConfigError, match=r"no 'sse' kernels; this CPU can run .*scalar"):
            ExpertPool(threads=1, isa="sse")

    def test_an_unknown_isa_in_the_environment(self, monkeypatch):
        """KTD_ISA is checked like the argument."""
        monkeypatch.setenv("KTD_ISA", "sse")
        with pytest.raises(ConfigError, match="no 'sse' kernels"):
            ExpertPool(threads=1)

    def test_a_cpu_that_may_not_be_used(self):
        """Pinning outside the process's affinity is refused by number."""
        with pytest.raises(ConfigError, match="CPU 99999 is not one that this process may use"):
            ExpertPool(threads=1, cpus=[99999])

    def test_a_negative_thread_count(self):
        """A count below zero is refused with its value."""
        with pytest.raises(ConfigError, match="threads must not be negative, but is -1"):
            ExpertPool(threads=-1)


class TestChoice:
    def test_the_best_isa_is_the_default(self, monkeypatch):
        """Without an override the first supported row of the table is used."""
        monkeypatch.delenv("KTD_ISA", raising=False)
        best = next(isa.name for isa in isas() if isa.supported)
        assert ExpertPool(threads=1).isa == best

    def test_the_environment_overrides_it(self, monkeypatch):
        """KTD_ISA chooses where no argument does."""
        monkeypatch.setenv("KTD_ISA", "scalar")
        assert ExpertPool(threads=1).isa == "scalar"

    def test_a_thread_for_each_cpu_by_default(self):
        """With CPUs given, there are as many threads."""
        cpus = sorted(os.sched_getaffinity(0))
        pool = ExpertPool(cpus=cpus)
        assert pool.threads == len(cpus)
        assert pool.native.cpus == cpus
        assert 1 <= ExpertPool().threads <= len(cpus)
