"""Where slots live."""

from __future__ import annotations

from ktd.errors import ModelUnsupported


def detect_device(wanted: str) -> str:
    """Where the engine runs: ``"cpu"``, the only device that this version serves on.

    Raises:
        ModelUnsupported: another one is asked for.
    """
    if wanted not in ("auto", "cpu"):
        raise ModelUnsupported(
            f"--device {wanted} is not in this version: slots on a GPU are being built; "
            "leave it out, and slots are kept in host memory."
        )
    return "cpu"
