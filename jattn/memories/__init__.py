"""Memories that learn while they read: four choices (architecture, bias, retention, learner), one mixer, one table."""

from jattn.memories.members import MEMORIES
from jattn.memories.memory import MemoryConfig, MemoryState

__all__ = ['MEMORIES', 'MemoryConfig', 'MemoryState']
