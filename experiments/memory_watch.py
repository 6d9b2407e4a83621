"""The memory of this process while it runs: what it takes, and how much that grows after a warm-up."""

import os
import pathlib
import resource
import sys

import jax

STATM = pathlib.Path('/proc/self/statm')  # Linux


def peak_bytes() -> int:
    """The largest resident size since the process started."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else 1024 * peak


def resident_bytes() -> int:
    """The resident size now; where the system does not say it, the largest so far."""
    return int(STATM.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') if STATM.exists() else peak_bytes()


def device_peak_bytes() -> int | None:
    """The largest use of the first device's own memory; None where there is none (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


class MemoryWatch:
    """Looks at the resident size as tokens go by.

    Args:
        warm_up: tokens after which nothing may grow: what compilation takes and gives back comes before.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._before = self._after = 0

    def look(self, tokens: int) -> None:
        """Samples the size after so many tokens."""
        if tokens <= self._warm_up:
            self._before = max(self._before, resident_bytes())
        else:
            self._after = max(self._after, resident_bytes())

    @property
    def peak(self) -> int:
        """The largest sample."""
        return max(self._before, self._after)

    @property
    def growth(self) -> int | None:
        """By how much the largest sample after the warm-up exceeds the largest before; None: no sample of one."""
        return max(0, self._after - self._before) if self._before and self._after else None
