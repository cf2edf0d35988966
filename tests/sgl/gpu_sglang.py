"""SGLang's fused experts on a GPU, without the engine's process groups."""

from __future__ import annotations

import contextlib
from typing import Any

from tests.live import MODEL


def stand_alone() -> Any:
    """Makes SGLang's runners work in this process; returns the module with the Triton runner's."""
    import sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe as module
    from sglang.srt.server_args import ServerArgs

    with contextlib.suppress(ImportError):
        from sglang.srt.server_args import set_global_server_args_for_scheduler

        set_global_server_args_for_scheduler(ServerArgs(model_path=str(MODEL)))
    module.use_symmetric_memory = lambda *_, **__: contextlib.nullcontext()
    module.get_tp_group = lambda: None
    return module
