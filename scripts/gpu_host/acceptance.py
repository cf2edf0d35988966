"""Runs groups of acceptance tests side by side, each in a pytest of its own, within a time limit.

    acceptance.py FOLDER [JOB ...] [--lanes N] [--seconds S]

Every lane has cores of its own, so that engines do not pin their threads to the same ones. What is
not done when the time is over is interrupted as Ctrl-C would, and reported so; exit status 1 if
anything failed or was left. What was skipped is said by name, and is no failure.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from acceptance_report import JobResult, report

ROOT = Path(__file__).resolve().parents[2]
# The project's own settings name plugins that such a host need not have.
PYTEST_INI = "[pytest]\nmarkers =\n    engine\n    soak\n    timeout\n    alone\n"
# From the interrupt to the end: daemons are told to stop and may take so long.
GRACE_SECONDS = 30.0
LANES = 8

_TESTS = "tests/acceptance"
_AT_RATIO = f"{_TESTS}/test_logprobs.py::test_logprobs_agree_with_the_reference_at_a_ratio"
_STREAMED = f"{_TESTS}/test_logprobs.py::test_logprobs_agree_where_a_gpu_computes_long_prompts"
_AT_LOAD = (
    f"{_TESTS}/test_cpu_expert_format.py::test_no_placement_changes_the_answer_of_quantised_experts"
)
_KILLS = f"{_TESTS}/test_kills.py::"
_RECORDINGS = f"{_TESTS}/test_recordings.py::"
_ARCHITECTURE = (
    "tests/sgl/test_architectures.py::"
    "test_log_probabilities_agree_with_transformers_at_any_placement"
)
_ARCHITECTURES = ("glm4_moe", "granitemoe", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")
_FORMAT = "tests/sgl/test_gpu_models.py::test_answers_at_every_placement_are_near_the_reference"
_FORMATS = ("int4-triton", "int4-marlin", "gptq", "awq", "int8", "fp8-channel", "fp8-block")
_ENGINE_KILLS = f"{_KILLS}test_a_killed_engine_process_is_noticed_and_everything_is_restored"

_BATCHES = f"{_TESTS}/test_batches.py"
_WAYS = ("mixed", "chunked-without-overlap", "beyond-the-graphs", "eager")

_TWO_RANKS = f"{_TESTS}/test_logprobs.py::test_logprobs_agree_on_two_ranks"
_STREAMS = f"{_TESTS}/test_streams_during_swaps.py::test_streams_do_not_notice_a_thousand_swaps"
_FAULTS = {
    "swaps": (
        "test_a_step_of_a_swap_that_fails_is_taken_back[{}-prepare]",
        "test_a_step_of_a_swap_that_fails_is_taken_back[{}-copy]",
        "test_a_step_of_a_swap_that_fails_is_taken_back[{}-publish]",
    ),
    "steps": (
        "test_tables_that_do_not_reach_the_gpu_end_the_engine[{}]",
        "test_a_step_that_fails_ends_the_engine_and_not_the_service[{}-cpu-task]",
    ),
    # Skipped where ranks have not two cores each: a lane of two ranks needs four.
    "pool": ("test_a_step_that_fails_ends_the_engine_and_not_the_service[{}-pool-thread]",),
    "deaths": (
        "test_a_step_that_fails_ends_the_engine_and_not_the_service[{}-rank-death]",
        "test_a_rank_that_dies_between_copying_and_publishing[{}]",
    ),
}


def _streamed(form: str) -> tuple[str, ...]:
    return tuple(f"{_STREAMED}[{form}-{who}]" for who in ("cpu-share", "gpu-alone"))


def _faults(prefix: str, ranks: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{prefix}-{what}": tuple(
            f"{_TESTS}/test_faults.py::{test.format(ranks)}" for test in tests
        )
        for what, tests in _FAULTS.items()
    }


# The long ones first; a job is what shares servers, or fits beside another.
JOBS: dict[str, tuple[str, ...]] = {
    # On a host with one GPU those of two ranks are skipped.
    **_faults("two-faults", "two-ranks"),
    "two-streams": (f"{_STREAMS}[two-ranks]",),
    "two-logprobs": (f"{_TWO_RANKS}[pool-bf16]", f"{_TWO_RANKS}[streamed-bf16]"),
    "two-counts": (f"{_RECORDINGS}test_counts_do_not_grow_with_tensor_parallelism",),
    "streams": (f"{_STREAMS}[one-rank]",),
    **_faults("faults", "one-rank"),
    "bf16-some": (f"{_AT_RATIO}[bf16-0.37]", *_streamed("bf16")),
    "fp8-some": (f"{_AT_RATIO}[fp8_block-0.37]", *_streamed("fp8_block")),
    "fp8-ends": (f"{_AT_RATIO}[fp8_block-0]", f"{_AT_RATIO}[fp8_block-1]"),
    "bf16-ends": (f"{_AT_RATIO}[bf16-0]", f"{_AT_RATIO}[bf16-1]"),
    **{f"arch-{name}": (f"{_ARCHITECTURE}[{name}]",) for name in (*_ARCHITECTURES, "qwen3_next")},
    "arch-gpt_oss": ("tests/sgl/test_gpu_gpt_oss.py",),
    **{
        f"format-{name}": tuple(f"{_FORMAT}[{name}-{who}]" for who in ("pool", "streamed"))
        for name in _FORMATS
    },
    **{
        f"batches-{way}": (
            f"{_BATCHES}::test_logprobs_agree_with_the_reference[{way}]",
            f"{_BATCHES}::test_streams_go_on_between_long_prompts[{way}]",
        )
        for way in _WAYS
    },
    "plans": (f"{_TESTS}/test_placement_plans.py",),
    "kill-daemon": (
        f"{_KILLS}test_a_killed_daemon_takes_its_children_and_the_next_start_restores",
        f"{_KILLS}test_sigterm_ends_everything",
    ),
    "policy": (f"{_TESTS}/test_policy.py",),
    "kill-scheduler": (f"{_ENGINE_KILLS}[sglang::scheduler]",),
    "kill-host": (f"{_ENGINE_KILLS}[ktd.sgl.host]",),
    **{f"at-load-{form}": (f"{_AT_LOAD}[{form}]",) for form in ("int8", "int4")},
    "recordings": (
        f"{_RECORDINGS}test_prefill_and_decode_are_counted_apart",
        f"{_RECORDINGS}test_a_dump_names_its_file_and_ktd_reads_it",
        f"{_RECORDINGS}test_a_profile_survives_and_the_next_start_is_warm",
    ),
    "idle": (f"{_TESTS}/test_idle.py",),  # on two GPUs also of two ranks
    "mmap": (f"{_TESTS}/test_host_memory.py",),
    "untried": (f"{_TESTS}/test_untried_release.py",),
    "deferral": (f"{_TESTS}/test_deferral.py",),
}


@dataclass(frozen=True)
class Run:
    """One run of some jobs.

    Attributes:
        work: Where each job leaves its files.
        ini: pytest's settings.
        daemons: Where daemons' logs are kept.
        deadline: On the monotonic clock: when what still runs is interrupted.
    """

    work: Path
    ini: Path
    daemons: Path
    deadline: float

    def job(self, name: str, cores: Sequence[int]) -> JobResult:
        """Runs one job on some cores until it ends or the time is over."""
        began = time.monotonic()
        result = self.result_of(name)
        if began >= self.deadline:
            return result
        with result.log.open("wb") as log:
            process = subprocess.Popen(
                self._command(name, result.xml),
                cwd=ROOT,
                env={**os.environ, "KTD_TEST_LOGS": str(self.daemons)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            # Before it has imported anything, and so before it has a second thread.
            os.sched_setaffinity(process.pid, cores)
            result.status = self._wait(process)
        result.seconds = time.monotonic() - began
        return result

    def result_of(self, name: str) -> JobResult:
        """Of a job that has not begun."""
        return JobResult(name, self.work / f"{name}.log", self.work / f"{name}.xml")

    def _command(self, name: str, xml: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "pytest", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider"),
            *("-c", str(self.ini), "--rootdir", str(ROOT), "--import-mode=importlib"),
            *("-m", "not soak", f"--junitxml={xml}", "-o", "junit_logging=system-out"),
            *(f"--basetemp={self.work / name}.tmp", *JOBS[name]),
        ]

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Its exit status, or None if it had to be killed."""
        try:
            return process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def run_all(run: Run, names: Sequence[str], lanes: int) -> list[JobResult]:
    """All jobs on ``lanes`` lanes, each with its share of the cores."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    results: list[JobResult] = []
    cores = sorted(os.sched_getaffinity(0))
    lanes = max(1, min(lanes, len(names), len(cores)))

    def work(lane: int) -> None:
        share = cores[lane * len(cores) // lanes : (lane + 1) * len(cores) // lanes]
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            result = run.job(name, share)
            results.append(result)
            print(f"{result.outcome:11} {result.seconds:4.0f} s  {name}", flush=True)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = {result.name for result in results}
    # Of a lane whose thread has died.
    results += [run.result_of(name) for name in names if name not in done]
    return sorted(results, key=lambda result: names.index(result.name))


def keep(folder: Path, run: Run, results: Sequence[JobResult], text: str) -> None:
    """A few files instead of many."""
    (folder / "results.txt").write_text(text)
    with (folder / "pytest.log").open("w") as log:
        for result in results:
            if result.log.exists():
                log.write(f"===== {result.name}\n{result.log.read_text(errors='replace')}\n")
    with tarfile.open(folder / "daemons.tar.xz", "w:xz", preset=1) as archive:
        archive.add(run.daemons, arcname="daemons")
    shutil.rmtree(run.work, ignore_errors=True)


def main() -> int:
    """Runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(JOBS))
    parser.add_argument("--lanes", type=int, default=LANES)
    parser.add_argument("--seconds", type=float, default=400.0)
    args = parser.parse_intermixed_args()
    unknown = [name for name in args.jobs if name not in JOBS]
    if unknown:
        parser.error(f"there is no job {unknown[0]!r}; choose from {', '.join(JOBS)}")
    work = args.folder.absolute() / "work"
    run = Run(
        work, work / "pytest.ini", work / "daemons", time.monotonic() + args.seconds - GRACE_SECONDS
    )
    run.daemons.mkdir(parents=True, exist_ok=True)
    run.ini.write_text(PYTEST_INI)
    results = run_all(run, args.jobs or list(JOBS), args.lanes)
    print(report(results, characters=10_000))
    passed = all(result.outcome in ("passed", "skipped") for result in results)
    keep(args.folder, run, results, report(results))  # and removes the logs that tell it
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
