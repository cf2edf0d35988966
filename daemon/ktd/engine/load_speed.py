"""How fast weights are being loaded, for the line that people watch."""

from __future__ import annotations

from collections import deque

from ktd.engine.status import LoadProgress

# Seconds that a speed is measured over: long enough to be steady, short enough to be of now.
_WINDOW = 10.0
_GIB = 1 << 30


class LoadSpeed:
    """Told the progress from time to time; knows the speed of the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def note(self, progress: LoadProgress, now: float) -> None:
        """Takes down how far loading has come at ``now``, in seconds of a steady clock."""
        if self._seen and progress.bytes_done < self._seen[-1][1]:
            self._seen.clear()  # another engine
        if not self._seen or now > self._seen[-1][0]:
            self._seen.append((now, progress.bytes_done))
        while now - self._seen[0][0] > _WINDOW and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()

    def bytes_per_second(self) -> float:
        """Speed of the last seconds, or 0 while it is not known."""
        if len(self._seen) < 2:  # noqa: PLR2004 - a speed takes two times
            return 0.0
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first)

    def text(self, progress: LoadProgress) -> str:
        """The line: ``43 % of 56.9 GiB of experts are in memory, 2.1 GB/s, 15 s left.``."""
        share = 100 * progress.bytes_done // progress.bytes_total
        text = f"{share} % of {progress.bytes_total / _GIB:.1f} GiB of experts are in memory"
        speed = self.bytes_per_second()
        if speed <= 0:
            return f"{text}."
        left = (progress.bytes_total - progress.bytes_done) / speed
        return f"{text}, {speed / 1e9:.1f} GB/s, {_duration(left)} left."


def _duration(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004 - two digits of seconds are more telling than minutes
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
