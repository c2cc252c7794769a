"""Time that passes only when told."""

from __future__ import annotations

PAUSE_S = 0.0005
"""What a wait for a tick takes a look: some hundred looks a tick, not a hundred thousand."""


class FakeClock:
    """A `Clock` for tests: `sleep` returns at once and moves it on.

    Args:
        start_s: What it shows at first, in seconds.
        pause_s: How far a `pause` moves it, in seconds; more than 0, so that a wait for a tick ends.
    """

    def __init__(self, start_s: float = 0.0, *, pause_s: float = PAUSE_S) -> None:
        if not pause_s > 0:
            raise ValueError(f"pause_s must be more than 0 s, not {pause_s}: a wait for a tick would never end")
        self._now_s = start_s
        self._pause_s = pause_s

    def now_s(self) -> float:
        """Seconds, as far as it was moved."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`.

        Raises:
            ValueError: `seconds` is negative: a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"sleep takes 0 s or more, not {seconds}: a monotonic clock never goes back")
        self._now_s += seconds

    def pause(self) -> None:
        """Move on as between two looks at a counter."""
        self.sleep(self._pause_s)
