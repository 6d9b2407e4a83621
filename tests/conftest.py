"""Every test runs on four virtual CPU devices, with strict promotion of ranks and a compile cache in the checkout."""

import gc
import importlib.metadata
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent

os.environ['JAX_PLATFORMS'] = 'cpu'
# Tests are mostly compilation. Unoptimised code compiles 40% faster and runs 1.6 times slower; a program in one part
# instead of 32 compiles a fifth faster; XLA's older emitters of loops, gone since 0.11, take a third of the new ones.
FLAGS = [
    '--xla_force_host_platform_device_count=4',
    '--xla_backend_optimization_level=0',
    '--xla_cpu_parallel_codegen_split_count=1',
]
if importlib.metadata.version('jaxlib') < '0.11':
    FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join(FLAGS)
os.environ['JAX_COMPILATION_CACHE_DIR'] = str(ROOT / '.cache' / 'jax')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ['MPLBACKEND'] = 'agg'
sys.path.insert(0, str(ROOT))

import jax
import pytest
from jax._src.interpreters import mlir

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Traced programs are millions of objects that live on: Python's collector, as it is set, takes a tenth of the time.
gc.set_threshold(100_000, 50, 50)

make_context = mlir.make_ir_context


def make_context_of_one_thread():
    """MLIR's context of a program, which JAX keeps as long as the program, without locks and caches for each thread.

    Those caches are searched by context: with 2000 programs alive the next one is lowered five times as slowly as the
    first and compiled twice as slowly. JAX has no public switch for it.
    """
    context = make_context()
    context.enable_multithreading(False)
    return context


mlir.make_ir_context = make_context_of_one_thread

MAPS = pathlib.Path('/proc/self/maps')
MOST_MAPS = 20_000


@pytest.fixture(autouse=True)
def programs_are_freed():
    """Compiled programs are dropped before they exhaust the memory maps of a process.

    A program takes several (a small one 7), Linux allows 65,530, and XLA crashes where it gets no more.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b'\n') > MOST_MAPS:
        jax.clear_caches()
