"""SIGTERM: finish the step, save, exit 0; with several processes all at the same step."""

import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Asks whether the run was told to stop.

    With one process a handler sets a flag. With several the signal belongs to JAX's runtime, which agrees on a step
    that every process can reach; a handler of our own would silence it.
    """

    def __init__(self) -> None:
        self._told = False
        self._several = jax.process_count() > 1
        if not self._several:
            self._previous = signal.signal(signal.SIGTERM, self._handle)

    def at(self, step: int) -> bool:
        """Whether to save and stop at this step; every process must ask at every step it looks up."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._told

    def close(self) -> None:
        """Gives the signal back."""
        if not self._several:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._told = True
