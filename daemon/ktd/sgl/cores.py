"""How the cores of a host are divided among its ranks."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# Beside a GPU, one core of so many is not the pool's.
_LEFT_TO_ENGINE = 8
_RANK_NODES = "KTD_RANK_NODES"
_SYSFS = Path("/sys/devices/system/cpu")


def cores_allowed(sysfs: Path = _SYSFS) -> list[list[int]]:
    """Physical cores that this process may use, each as its allowed logical CPUs, ascending.

    Those of a NUMA node stand together, whichever numbers they have.
    """
    allowed = os.sched_getaffinity(0)
    cores = {_siblings(cpu, allowed, sysfs) for cpu in allowed}
    return [list(core) for core in sorted(cores, key=lambda core: (_node(core[0], sysfs), core))]


def share_of_cores(cores: Sequence[Sequence[int]], rank: int, world_size: int) -> list[int]:
    """One logical CPU for each core of one rank; shares are contiguous and differ by at most one.

    With more ranks than cores the hardware threads of the cores are divided instead, and with more
    ranks than those, ranks share them.
    """
    units = [core[0] for core in cores]
    if world_size > len(units):
        units = sorted(cpu for core in cores for cpu in core)
    if world_size > len(units):
        return [units[rank % len(units)]]
    return units[rank * len(units) // world_size : (rank + 1) * len(units) // world_size]


@dataclass(frozen=True, slots=True)
class PoolCores:
    """What one rank's pool runs on: 0 threads and no CPUs leave both to the pool."""

    threads: int
    cpus: tuple[int, ...] = ()
    note: str = ""


def pool_cores(
    limit: int | None,
    rank: int,
    world_size: int,
    *,
    quota: float,
    gpu: bool = False,
    nodes: Sequence[int] = (),
) -> PoolCores:
    """Threads and cores of one rank's pool: all allowed cores are divided among the ranks.

    Beside a GPU an eighth of the cores, or of as many as the quota feeds, one at least for each
    rank, is left to the engine's own processes: schedulers launch steps all the time, and a pool
    thread that shares the core of one holds up a layer.

    Args:
        limit: Threads of all ranks that were asked for, or None.
        rank: Which one.
        world_size: Of how many.
        quota: CPUs' worth of time that the cgroups give all ranks together.
        gpu: Whether slots are on a GPU.
        nodes: NUMA node of each rank's GPU, for ranks to have the cores nearest to theirs; empty:
            nobody knows.
    """
    if gpu and limit is None:
        fed = int(min(len(cores_allowed()), quota))
        limit = max(world_size, fed - max(world_size, fed // _LEFT_TO_ENGINE))
    if world_size == 1:
        return PoolCores(limit or 0)
    # As cores of a node stand together, so do ranks.
    order = sorted(range(world_size), key=lambda other: (nodes[other] if nodes else 0, other))
    mine = tuple(share_of_cores(cores_allowed(), order.index(rank), world_size))
    # A thread is pinned to one core, so there cannot be more of them.
    threads = min(max(1, limit // world_size) if limit else len(mine), len(mine))
    if limit or quota / world_size >= threads:
        return PoolCores(threads, mine)
    allowed = max(1, int(quota / world_size))
    note = (
        f"the cgroup's CPU quota is {quota:.4g} CPUs for {world_size} ranks, so each has "
        f"{allowed} of {threads} threads"
    )
    return PoolCores(allowed, mine, note if allowed < threads else "")


def core_environment(world_size: int) -> dict[str, str]:
    """Variables with which SGLang's ranks share the cores of a host without a GPU.

    Torch would start a thread per core in every rank. Each of its parallel regions waits for all
    of them, so one that has lost its core, to another rank or to SGLang's own processes, holds up
    the step for a scheduler tick. Eight streams and a thousand swaps on two ranks and two cores
    took more than ten minutes so, and 4.4 with a share for each. A rank gets its share, less one
    core for the other processes; ``OMP_NUM_THREADS`` wins.

    SGLang refuses more ranks than NUMA nodes unless it is told the cores of each. SGLang 0.5.17
    takes ranks on the CPU for ranks on GPUs when it finds NCCL, which torch brings; it is to find
    none.
    """
    cores = cores_allowed()
    shares = [share_of_cores(cores, rank, world_size) for rank in range(world_size)]
    threads = max(1, min(len(share) for share in shares) - 1)
    alone = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    if world_size == 1:
        return alone
    return alone | {
        "SGLANG_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, s)) for s in shares),
        "SGLANG_NCCL_SO_PATH": os.devnull,
    }


def gpu_core_environment(gpus: Sequence[int]) -> dict[str, str]:
    """Variables with which SGLang's ranks on GPUs share the cores of a host.

    Args:
        gpus: The ordinal of each rank's.
    """
    from ktd.cuda.driver import host_node

    nodes = [host_node(gpu) for gpu in gpus] if len(gpus) > 1 else []
    known = ",".join(map(str, nodes)) if None not in nodes else ""
    # In the way that is held off below, whatever the operator has set.
    return {_RANK_NODES: known, "SGLANG_NUMA_BIND_V2": "true", "SGLANG_AUTO_NUMA_BIND": "false"}


def nodes_of_ranks() -> list[int]:
    """NUMA node of each rank's GPU, as the process above has found them; or none."""
    return [int(node) for node in filter(None, os.environ.get(_RANK_NODES, "").split(","))]


def keep_all_cores() -> None:
    """SGLang's ranks, started from here on, may run on every core and use every node's memory.

    SGLang would bind each to the node of its GPU: of a host with two nodes one rank's pool could
    use half the cores, and its experts half the memory. Newer releases can be told so
    (``SGLANG_AUTO_NUMA_BIND``), 0.5.17 cannot.
    """
    from sglang.srt.utils import numa_utils

    numa_utils.get_numa_node_if_available = lambda *_: None


def _node(cpu: int, sysfs: Path) -> int:
    """The NUMA node of a CPU; 0 where the kernel does not say."""
    found = [path.name.removeprefix("node") for path in (sysfs / f"cpu{cpu}").glob("node[0-9]*")]
    return int(found[0]) if found else 0


def _siblings(cpu: int, allowed: Collection[int], sysfs: Path) -> tuple[int, ...]:
    """The allowed hardware threads of a CPU's core; the CPU alone where the kernel does not say."""
    try:
        text = (sysfs / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return (cpu,)
    listed: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        listed.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(listed & set(allowed) | {cpu}))
