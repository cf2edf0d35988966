"""Entry point ``sglang.srt.plugins``: runs in every SGLang process, before models are built.

SGLang logs and ignores a plugin that fails, so a failure is also left where the daemon looks, and
the engine host starts serving only when every process has reported.
"""

from __future__ import annotations

from ktd.enginespec import EngineSpec, report_failure


def register() -> None:
    """Installs ktd's hooks, if this process belongs to an engine that ktd started."""
    spec = EngineSpec.from_environment()
    if spec is None:
        return
    # Imported here, not above: an engine that is not ktd's must not pay for it.
    from ktd.sgl import seam, sglang_process

    try:
        sglang_process.report_process(spec)
        seam.install(spec)
    except Exception as error:
        report_failure(spec, "plugin", f"ktd's SGLang plugin could not be installed: {error}")
        raise
