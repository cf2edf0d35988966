"""Says why the process died when a file that experts are used from lost pages.

Reading such a page is a signal (SIGBUS) that nobody can recover from; the sentence about it is made
beforehand, and the extension writes it.
"""

from __future__ import annotations

from ktd.enginespec import EngineSpec, failure_file, failure_text
from ktd.experts import _native
from ktd.sgl.weight_file import WeightFile


def watch(spec: EngineSpec, file: WeightFile) -> None:
    """Watches a mapped file for the life of the process."""
    # The engine is started again, and refused with what is wrong if the file is still damaged.
    text = failure_text(
        "internal",
        f"{file.path} became shorter, or its disk failed, while experts were used from it "
        "(--host-memory mmap); put it back as it was, and leave the files of a served model alone",
    )
    _native.watch_mapping(file.address, file.mapped_bytes, str(failure_file(spec)), text)
