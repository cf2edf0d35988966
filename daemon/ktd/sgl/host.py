"""The engine host: ``python -m ktd.sgl.host``, a child of the daemon.

Its main thread builds SGLang's ``Engine`` and then serves SGLang's OpenAI app on a Unix socket; a
second thread serves the control channel from the first moment on. Module level imports nothing
heavy: SGLang's spawned children import this module again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from ktd.enginespec import PROCESS_ENDED, EngineSpec, read_failure, report_failure
from ktd.version import untried_on_gpus

LIFELINE_VARIABLE = "KTD_LIFELINE_FD"
_WARM_UP_SECONDS = 600.0

logger = logging.getLogger("ktd.sgl.host")


class StartFailed(Exception):  # says what happened
    """The engine cannot serve; ``kind`` is the failure's kind."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EngineHost:
    """One engine, from arguments to serving."""

    def __init__(self, spec: EngineSpec) -> None:
        # grpc is imported here, so that SGLang's children do not.
        from ktd.sgl.control_thread import ControlThread

        self._spec = spec
        self._server: Any = None
        self._stopping = threading.Event()
        self._control = ControlThread(spec, stop=self.stop, give_up=self._give_up)

    def run(self) -> int:
        """Serves until told to stop; returns the exit code."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        try:
            self._control.start()
            self._serve()
        except StartFailed as failed:
            return self._failed(failed.kind, str(failed))
        except Exception as error:
            logger.exception("the engine host failed")
            return self._failed("internal", f"the engine host failed: {error}")
        finally:
            self._control.close()
        return 0

    def _failed(self, kind: str, sentence: str) -> int:
        report_failure(self._spec, kind, sentence)
        self._control.fail(sentence)
        logger.error("%s", sentence)
        return 1

    def stop(self) -> None:
        """Ends the host: at once while it loads, through the server when it serves."""
        self._stopping.set()
        if self._server is None:
            end_process_tree(0)
        self._server.should_exit = True

    def _give_up(self, sentence: str) -> None:
        report_failure(self._spec, "internal", sentence)
        end_process_tree(1)

    def _signal_handlers(self) -> type:
        """In place of SGLang's: it would drain by itself, and kill this process without a word."""
        host = self

        class Handlers:
            def __init__(self, _tokenizer_manager: Any) -> None:
                pass

            def sigterm_handler(self, *_: Any) -> None:
                host.stop()

            def running_phase_sigquit_handler(self, *_: Any) -> None:
                host._give_up(PROCESS_ENDED)

        return Handlers

    def _serve(self) -> None:
        from ktd.sgl import openai_app
        from ktd.sgl.server_arguments import ArgumentsRefused, parse

        try:
            server_args = parse(self._spec)
        except ArgumentsRefused as refused:
            raise StartFailed(refused.kind, str(refused)) from refused
        self._control.loading(torch=distribution_version("torch"))
        self._prepare_ranks(server_args)
        engine = self._build_engine(server_args)
        engine.tokenizer_manager.signal_handler_class = self._signal_handlers()
        try:
            ranks = self._require_hellos(server_args.tp_size)
            self._control.warming(
                lambda request: engine.collective_rpc("ktd_call", request=request), ranks
            )
            self._server = openai_app.build_server(engine, server_args, self._spec.http_socket)
            threading.Thread(target=self._warm_up, name="ktd-warm-up", daemon=True).start()
            self._server.run()
        finally:
            engine.shutdown()

    def _prepare_ranks(self, server_args: Any) -> None:
        """Everything that ranks find when they start, and share."""
        from ktd.sgl import cores

        ranks = server_args.tp_size
        if self._spec.device == "cpu":
            os.environ.update(cores.core_environment(ranks))
            return
        from ktd.cuda import error_words

        if note := untried_on_gpus(distribution_version("sglang")):
            logger.warning("SGLang is %s; each layer tries its runner before its first step.", note)
        first, step = server_args.base_gpu_id, server_args.gpu_id_step
        gpus = range(first, first + ranks * step, step)
        os.environ.update(cores.gpu_core_environment(gpus))
        cores.keep_all_cores()
        if ranks > 1:
            error_words.provide(error_words.path_of(Path(self._spec.runtime_dir)), ranks)

    def _build_engine(self, server_args: Any) -> Any:
        from sglang.srt.entrypoints.engine import Engine

        try:
            return Engine(server_args=server_args)
        except Exception as error:
            # The scheduler's own sentence, if it left one, says more than "a child died".
            failure = read_failure(Path(self._spec.runtime_dir))
            if failure is not None:
                raise StartFailed(failure.kind, failure.message) from error
            raise StartFailed("internal", f"SGLang's engine did not start: {error}") from error

    def _require_hellos(self, num_ranks: int) -> list[Any]:
        """Opens every rank's file; a process without ktd's plugin ends the start."""
        from ktd.rankfile import RankFileReader, path_of
        from ktd.sgl.sglang_process import without_hello

        ranks = []
        expected = len(self._spec.moe_layers)
        for rank in range(num_ranks):
            try:
                reader = RankFileReader(path_of(Path(self._spec.runtime_dir), rank))
            except (OSError, ValueError) as error:
                raise StartFailed(
                    "plugin", f"ktd's plugin did not load in SGLang's scheduler rank {rank}"
                ) from error
            hello = reader.hello()
            hooked = hello["moe_layers_hooked"] if hello else 0
            if hooked != expected:
                raise StartFailed(
                    "plugin",
                    f"rank {rank} hooked {hooked} of the model's {expected} MoE layers;"
                    f" this model class does not go with ktd",
                )
            ranks.append(reader)
        silent = without_hello(self._spec, sglang_children())
        if silent:
            raise StartFailed("plugin", f"ktd's plugin did not load in SGLang process {silent[0]}")
        return ranks

    def _warm_up(self) -> None:
        from ktd.sgl.openai_app import warm_up

        deadline = time.monotonic() + _WARM_UP_SECONDS
        while not self._stopping.is_set():
            try:
                warm_up(self._spec.http_socket, _WARM_UP_SECONDS)
                self._control.ready()
            except OSError:
                if time.monotonic() > deadline:
                    self._give_up("SGLang's application did not open its socket")
                time.sleep(0.02)
            except Exception as error:
                if self._stopping.is_set():
                    return
                logger.exception("warming up failed")
                self._give_up(f"the engine started but its first request failed: {error}")
            else:
                return


def sglang_children() -> list[int]:
    """Processes of SGLang below this one that load plugins.

    Helpers of multiprocessing are not counted, nor is the detokenizer of SGLang 0.5.17, which
    loads none.
    """
    import psutil
    from sglang.srt.managers import detokenizer_manager

    titles = ("sglang::",) if hasattr(detokenizer_manager, "load_plugins") else ("sglang::sched",)
    return [
        child.pid
        for child in psutil.Process().children(recursive=True)
        if " ".join(child.cmdline()).startswith(titles)
    ]


def end_process_tree(code: int) -> None:
    """Kills every child and leaves, without running any exit handler."""
    import psutil

    # More than once: another thread may be starting children at this moment.
    for _ in range(5):
        children = psutil.Process().children(recursive=True)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        if not psutil.wait_procs(children, timeout=1.0)[0]:
            break
    os._exit(code)


def watch_lifeline(fd: int) -> None:
    """Ends everything when the daemon, the only holder of the pipe's other end, is gone."""

    def wait() -> None:
        # A descriptor that cannot be read counts as closed: nobody would notice its closing.
        with contextlib.suppress(OSError):
            while os.read(fd, 1):
                pass
        end_process_tree(1)

    threading.Thread(target=wait, name="ktd-lifeline", daemon=True).start()


def main() -> int:
    """Runs the host under the spec named in the environment."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    spec = EngineSpec.from_environment()
    if spec is None:
        sys.stderr.write("ktd: the engine host is started by `ktd serve`, not by hand\n")
        return 2
    lifeline = os.environ.get(LIFELINE_VARIABLE)
    if lifeline:
        watch_lifeline(int(lifeline))
    return EngineHost(spec).run()


if __name__ == "__main__":
    # Leave at once: interpreter shutdown would wait for SGLang's threads.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
