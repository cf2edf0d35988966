"""Downloads a model from Hugging Face, in a process of its own that can be ended at any moment.

What was downloaded stays in the cache, so the next attempt resumes. The child prints one JSON
object a line (:mod:`ktd.model.hub_child`) and ends when its standard input closes, which happens
however this process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ktd.errors import DoesNotFit, ModelUnsupported

CHILD_COMMAND = (sys.executable, "-m", "ktd.model.hub_child")


async def download(
    repo_id: str,
    *,
    revision: str | None,
    cache_dir: Path | None,
    say: Callable[[str], None],
    command: Sequence[str] = CHILD_COMMAND,
) -> Path:
    """The folder of ``repo_id`` in the cache, complete.

    Args:
        repo_id: ``owner/name``.
        revision: Branch, tag or commit; None is the default branch.
        cache_dir: Hugging Face cache; None is the one that huggingface_hub uses.
        say: Told the progress, one sentence at a time.
        command: The child.

    Raises:
        ModelUnsupported: it does not exist, is gated, or cannot be reached and is not cached.
        DoesNotFit: the disk has too little room, with the sum.
    """
    request = {
        "repo_id": repo_id,
        "revision": revision,
        "cache_dir": str(cache_dir) if cache_dir else None,
    }
    say(f"Looking for {repo_id} on Hugging Face.")
    child = await asyncio.create_subprocess_exec(
        *command,
        json.dumps(request),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    result: dict[str, Any] = {}
    try:
        if child.stdout is None:
            raise RuntimeError("asked for with PIPE")
        async for line in child.stdout:
            message = json.loads(line)
            if "progress" in message:
                say(str(message["progress"]))
            else:
                result = message
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    if "folder" in result:
        return Path(result["folder"])
    message = str(result.get("error") or f"The download of {repo_id} ended without a result.")
    raise (DoesNotFit if result.get("kind") == "disk" else ModelUnsupported)(message)
