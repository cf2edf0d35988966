"""One gloo network device, and thus one polling thread, for all of SGLang's process groups.

SGLang makes about nine gloo groups per scheduler even with one rank, torch gives each a device of
its own, and each device polls its sockets a hundred times a second: 1.4 % of a core for a process
that does nothing (measured, two-core host). Groups may share a device; torch has no way to ask.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from torch.distributed import distributed_c10d


def share_device() -> None:
    """Lets every gloo group that this process makes from now on use one device."""
    original = distributed_c10d.ProcessGroupGloo
    if original.__name__ == "SharedDeviceGloo":
        return
    devices: list[Any] = []

    class SharedDeviceGloo(original):  # type: ignore[misc, valid-type] # a class made at run time
        """``ProcessGroupGloo`` as torch calls it, on the shared device."""

        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta, **_: Any) -> None:
            if not devices:
                devices.append(original.create_default_device())
            options = original._Options()  # type: ignore[attr-defined] # not in the stubs
            options._timeout = timeout
            options._threads = 2
            options._devices = devices
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = SharedDeviceGloo  # type: ignore[assignment, misc] # see above
