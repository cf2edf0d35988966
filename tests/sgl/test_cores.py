"""Cores are divided among ranks."""

import os
from types import SimpleNamespace

import pytest

from ktd.cuda import driver
from ktd.sgl import cores as module
from ktd.sgl.cores import PoolCores, core_environment, cores_allowed, pool_cores, share_of_cores

FOUR_CORES_WITH_TWO_THREADS = [[0, 4], [1, 5], [2, 6], [3, 7]]


@pytest.mark.parametrize(
    ("world_size", "shares"),
    [
        (1, [[0, 1, 2, 3]]),
        (2, [[0, 1], [2, 3]]),
        (3, [[0], [1], [2, 3]]),
        (8, [[0], [1], [2], [3], [4], [5], [6], [7]]),
        (9, [[0], [1], [2], [3], [4], [5], [6], [7], [0]]),
    ],
)
def test_ranks_get_cores_of_their_own_before_they_share_threads(world_size, shares):
    """Two ranks on the two threads of each core would slow each other."""
    cores = FOUR_CORES_WITH_TWO_THREADS
    assert [share_of_cores(cores, rank, world_size) for rank in range(world_size)] == shares


def test_only_allowed_cpus_are_divided(tmp_path):
    """What the kernel calls siblings is cut down to what this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in allowed:
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{min(allowed)}-{max(allowed) + 64}\n")
    assert cores_allowed(tmp_path) == [allowed]


def test_cores_of_a_node_stand_together(tmp_path, monkeypatch):
    """On some hosts every second CPU is of the second node."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 5})
    for cpu in range(6):
        (tmp_path / f"cpu{cpu}" / f"node{cpu % 2}").mkdir(parents=True)
    assert cores_allowed(tmp_path) == [[0], [2], [4], [1], [3], [5]]


def test_a_kernel_that_names_no_siblings_gives_one_core_per_cpu(tmp_path):
    """In a container without that part of sysfs."""
    assert cores_allowed(tmp_path) == [[cpu] for cpu in sorted(os.sched_getaffinity(0))]


@pytest.mark.parametrize("world_size", [1, 2])
def test_torch_leaves_a_core_to_the_other_processes(world_size, monkeypatch):
    """A parallel region waits for all its threads, so none may be without a core."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = int(core_environment(world_size)["OMP_NUM_THREADS"])
    share = len(cores_allowed()) // world_size
    assert threads == max(1, share - 1)


def test_one_rank_is_told_nothing_else(monkeypatch):
    """SGLang's own choice of cores stays, and so does an operator's of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert core_environment(1) == {"OMP_NUM_THREADS": "7"}


def test_sglang_is_told_the_cores_of_each_rank():
    """One list per rank, in SGLang's own notation."""
    value = core_environment(2)["SGLANG_CPU_OMP_THREADS_BIND"]
    lists = value.split("|")
    assert len(lists) == 2
    cpus = {int(cpu) for cores in lists for cpu in cores.split(",")}
    assert cpus <= os.sched_getaffinity(0)


@pytest.mark.parametrize(
    ("limit", "quota", "threads"),
    [(None, float("inf"), 2), (None, 3.0, 1), (None, 0.5, 1), (2, 1.0, 1), (9, 1.0, 2)],
)
def test_a_quota_lowers_the_threads_of_each_rank_unless_they_were_asked_for(
    monkeypatch, limit, quota, threads
):
    """Threads that the quota does not feed would all stand still for part of every period."""
    monkeypatch.setattr(module, "cores_allowed", lambda: FOUR_CORES_WITH_TWO_THREADS)
    cores = pool_cores(limit, 1, 2, quota=quota)
    assert (cores.threads, cores.cpus) == (threads, (2, 3))
    assert bool(cores.note) == (limit is None and threads < 2)
    assert not cores.note or cores.note == (
        f"the cgroup's CPU quota is {quota:.4g} CPUs for 2 ranks, so each has 1 of 2 threads"
    )


def test_one_rank_leaves_cores_to_the_pool():
    """Which knows the quota itself."""
    assert pool_cores(None, 0, 1, quota=1.0) == PoolCores(0)
    assert pool_cores(3, 0, 1, quota=1.0) == PoolCores(3)


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [
        (16, float("inf"), 14),
        (32, float("inf"), 28),
        (4, float("inf"), 3),
        (2, 2.0, 1),
        (16, 5.5, 4),
        (64, 8.0, 7),
        (64, 0.5, 1),
        (9, float("inf"), 8),
    ],
)
def test_beside_a_gpu_the_engine_keeps_an_eighth_of_the_cores(monkeypatch, cores, quota, threads):
    """One at least: its scheduler launches steps all the time."""
    monkeypatch.setattr(module, "cores_allowed", lambda: [[cpu] for cpu in range(cores)])
    assert pool_cores(None, 0, 1, quota=quota, gpu=True) == PoolCores(threads)
    assert pool_cores(5, 0, 1, quota=quota, gpu=True) == PoolCores(5)


def test_ranks_beside_gpus_share_what_is_left(monkeypatch):
    monkeypatch.setattr(module, "cores_allowed", lambda: [[cpu] for cpu in range(32)])
    found = [pool_cores(None, rank, 2, quota=float("inf"), gpu=True) for rank in range(2)]
    assert [cores.threads for cores in found] == [14, 14]
    assert not set(found[0].cpus) & set(found[1].cpus)


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(9, 2, 3), (16, 4, 3), (4, 4, 1)])
def test_each_rank_beside_a_gpu_has_a_core_for_its_scheduler(monkeypatch, cores, ranks, threads):
    """As long as there are cores for that."""
    monkeypatch.setattr(module, "cores_allowed", lambda: [[cpu] for cpu in range(cores)])
    found = [pool_cores(None, rank, ranks, quota=float("inf"), gpu=True) for rank in range(ranks)]
    assert [pool.threads for pool in found] == [threads] * ranks


@pytest.mark.parametrize(
    ("nodes", "firsts"),
    [((), [0, 8]), ((0, 1), [0, 8]), ((1, 0), [8, 0]), ((1, 1), [0, 8])],
)
def test_a_rank_has_the_cores_of_its_gpus_node(monkeypatch, nodes, firsts):
    """GPUs are not numbered as nodes are; whose node nobody knows gets its share in order."""
    monkeypatch.setattr(module, "cores_allowed", lambda: [[cpu] for cpu in range(16)])
    found = [
        pool_cores(None, rank, 2, quota=float("inf"), gpu=True, nodes=nodes) for rank in range(2)
    ]
    assert [pool.cpus for pool in found] == [tuple(range(at, at + 8)) for at in firsts]


@pytest.mark.parametrize(
    ("nodes", "known"), [({2: 1, 3: 0}, [1, 0]), ({2: 1, 3: None}, []), ({2: 0}, [])]
)
def test_ranks_are_told_the_nodes_of_all_gpus(monkeypatch, nodes, known):
    """All or none: ranks that know different things would take the same cores."""
    monkeypatch.setattr(driver, "host_node", nodes.__getitem__)
    for name, value in module.gpu_core_environment(list(nodes)).items():
        monkeypatch.setenv(name, value)
    assert module.nodes_of_ranks() == known


def test_sglang_binds_no_rank_to_a_node(monkeypatch):
    """Whatever it finds out about GPUs: half the cores would be lost to the pool."""
    numa_utils = pytest.importorskip("sglang.srt.utils.numa_utils", reason="SGLang is missing")
    started = []
    monkeypatch.setattr(numa_utils, "_is_numa_available", lambda: True)
    monkeypatch.setattr(numa_utils, "_query_numa_node_for_gpu", lambda _: [0])
    monkeypatch.setattr(numa_utils, "_numactl_cpu_mem_args", lambda *found: started.append(found))
    arguments = SimpleNamespace(numa_node=None)
    with numa_utils.configure_subprocess(arguments, 0):
        assert started == [(0, 0)]
    monkeypatch.setattr(
        numa_utils, "get_numa_node_if_available", numa_utils.get_numa_node_if_available
    )
    module.keep_all_cores()
    with numa_utils.configure_subprocess(arguments, 0):
        assert started == [(0, 0)]
