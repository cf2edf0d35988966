"""Measures what a tensor of an expert costs the thread that loads a model, bytes aside.

Writes a small checkpoint with many experts (FP8 weights and their scales, 128 KiB a matrix), once,
and loads it as an engine on the CPU does, with SGLang's model, loader and hooks, each time in a
process of its own. With ``--against`` another tree's ``daemon`` folder takes turns with this one.

    python scripts/load_overhead.py [--experts 512] [--layers 2] [--rounds 5] [--against FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ktd.engine.launcher import child_environment
from ktd.enginespec import EngineSpec
from ktd.sgl.cores import core_environment
from ktd.sgl.server_arguments import parse

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, WIDTH, BLOCK, HEADS, HEAD, VOCABULARY = 512, 256, 128, 8, 64, 2048
CONFIG = f"""{{
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_act": "silu",
  "hidden_size": {HIDDEN}, "num_attention_heads": {HEADS}, "num_key_value_heads": {HEADS},
  "head_dim": {HEAD}, "intermediate_size": {HIDDEN}, "moe_intermediate_size": {WIDTH},
  "num_experts_per_tok": 8, "norm_topk_prob": true, "vocab_size": {VOCABULARY},
  "max_position_embeddings": 512, "tie_word_embeddings": false, "rms_norm_eps": 1e-6,
  "bos_token_id": 1, "eos_token_id": 2, "decoder_sparse_step": 1, "mlp_only_layers": [],
  "torch_dtype": "bfloat16", "rope_theta": 1e4, "attention_bias": false,
  "quantization_config": {{
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
    "weight_block_size": [{BLOCK}, {BLOCK}]
  }}
}}"""


def write_checkpoint(folder: Path, layers: int, experts: int) -> None:
    """Only experts are quantised: SGLang's other FP8 layers need a GPU."""

    def others(*shape: int) -> torch.Tensor:
        return torch.full(shape, 0.02, dtype=torch.bfloat16)

    table = (VOCABULARY, HIDDEN)
    tensors = {"model.embed_tokens.weight": others(*table), "lm_head.weight": others(*table)}
    tensors["model.norm.weight"] = others(HIDDEN)
    kept = ["lm_head"]
    for layer in (f"model.layers.{number}" for number in range(layers)):
        for norm, size in (("input", HIDDEN), ("post_attention", HIDDEN)):
            tensors[f"{layer}.{norm}_layernorm.weight"] = others(size)
        for norm in ("q_norm", "k_norm"):
            tensors[f"{layer}.self_attn.{norm}.weight"] = others(HEAD)
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{layer}.self_attn.{part}.weight"] = others(HIDDEN, HEADS * HEAD)
            kept.append(f"{layer}.self_attn.{part}")
        tensors[f"{layer}.mlp.gate.weight"] = others(experts, HIDDEN)
        kept.append(f"{layer}.mlp.gate")
        for expert in range(experts):
            for part in ("gate_proj", "up_proj", "down_proj"):
                shape = (HIDDEN, WIDTH) if part == "down_proj" else (WIDTH, HIDDEN)
                name = f"{layer}.mlp.experts.{expert}.{part}.weight"
                levels = torch.randint(0, 80, shape, dtype=torch.uint8)
                tensors[name] = levels.view(torch.float8_e4m3fn)
                tensors[f"{name}_scale_inv"] = torch.full([n // BLOCK for n in shape], 0.01)
    config = json.loads(CONFIG) | {"num_hidden_layers": layers, "num_experts": experts}
    config["quantization_config"]["modules_to_not_convert"] = kept
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    for file in (ROOT / "models" / "ktd-tiny").glob("token*"):
        shutil.copy(file, folder)


def load(folder: Path) -> None:
    """In a process of its own: prints tensors, seconds and this thread's CPU seconds; ends it."""
    # Here, not above: the parent has set what SGLang looks at when it is imported.
    scheduler = import_module("sglang.srt.managers.scheduler")
    loader = import_module("sglang.srt.model_loader.loader").DefaultModelLoader
    ports = import_module("sglang.srt.server_args").PortArgs
    config = json.loads((folder / "config.json").read_text())
    layers, experts = config["num_hidden_layers"], config["num_experts"]
    with tempfile.TemporaryDirectory(prefix="ktd-", dir="/tmp") as runtime:
        spec = EngineSpec(
            engine_id="load-overhead",
            runtime_dir=runtime,
            model_path=str(folder),
            sglang_args=(),
            device="cpu",
            moe_layers=tuple(range(layers)),
            num_experts=experts,
            experts_per_token=config["num_experts_per_tok"],
            slots=(0,) * layers,
            initial=((),) * layers,
        )
        spec.write()
        os.environ.update(child_environment(spec, os.environ, -1) | core_environment(1))
        original = loader.load_weights_only

        def timed(*model_and_weights: Any) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            original(*model_and_weights)
            spent = time.perf_counter() - wall, time.thread_time() - cpu
            print("LOADED", layers * experts * 6, *spent, flush=True)
            shutil.rmtree(runtime, ignore_errors=True)
            os._exit(0)

        loader.load_weights_only = staticmethod(timed)
        arguments = parse(spec)
        scheduler.run_scheduler_process(arguments, ports.init_new(arguments), 0, 0, 0, None, None)


def measure(folder: Path, daemon: Path) -> tuple[float, float]:
    """Milliseconds a tensor of one load: of the clock, and of the loading thread's CPU."""
    done = subprocess.run(
        [sys.executable, __file__, "--load", str(folder)],
        env=os.environ
        | {"PYTHONPATH": f"{daemon}:{os.environ.get('PYTHONPATH', '')}"}
        | {"HF_HUB_OFFLINE": "1", "SGLANG_PLATFORM": "ktd", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("LOADED")), None)
    if line is None:
        raise SystemExit(f"no model was loaded with {daemon}:\n{done.stdout}{done.stderr}"[-4000:])
    _, tensors, wall, cpu = line.split()
    return 1e3 * float(wall) / int(tensors), 1e3 * float(cpu) / int(tensors)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another tree's daemon folder")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        load(args.load)
    trees = {"this tree": ROOT / "daemon"}
    if args.against is not None:
        trees["the other"] = args.against
    rounds: dict[str, list[tuple[float, float]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), args.layers, args.experts)
        for _ in range(args.rounds):
            for tree, daemon in trees.items():
                rounds[tree].append(measure(Path(folder), daemon.resolve()))
    for tree, found in rounds.items():
        for kind, values in zip(
            ("clock", "CPU of the thread"), zip(*found, strict=True), strict=True
        ):
            each = ", ".join(f"{value:.3f}" for value in values)
            print(f"{tree}, {kind}: {statistics.median(values):.3f} ms a tensor ({each})")
    if args.against is not None:
        pairs = zip(rounds["the other"], rounds["this tree"], strict=True)
        ratios = [[of / to for of, to in zip(other, this, strict=True)] for other, this in pairs]
        clock, cpu = (statistics.median(kind) for kind in zip(*ratios, strict=True))
        print(f"the other / this tree: {clock:.2f} of the clock, {cpu:.2f} of CPU")


if __name__ == "__main__":
    main()
