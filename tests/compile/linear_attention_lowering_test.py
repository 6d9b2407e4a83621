"""The kernels of gated linear attention lower for GPUs and TPUs, forward and backward, from a host that has neither."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from jattn.ops import gated_linear_attention

DEVICES = {
    'cuda': AbstractDevice(device_kind='NVIDIA H100 80GB HBM3', num_cores=132, platform='gpu'),
    'tpu': AbstractDevice(device_kind='TPU v5e', num_cores=1, platform='tpu'),
}
KERNELS = {'cuda': 'pallas_triton', 'tpu': 'pallas_tpu'}
CALLS = {'cuda': '__gpu$xla.gpu.triton', 'tpu': 'tpu_custom_call'}


def lowered(platform, *, tokens=100, keys=64, values=64, decay=(), dtype=jnp.float32, implementation=None):
    """The text of outputs and gradients, lowered for the platform; decay: axes after [B, T], None: no decay."""
    array = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype)
    shapes = [array(2, tokens, 4, size) for size in (keys, keys, values)]
    shapes += [None if decay is None else array(2, tokens, *decay, dtype=jnp.float32)]
    shapes += [array(2, 4, keys, values, dtype=jnp.float32), array(2, tokens, dtype=jnp.int32)]

    def gradients(q, k, v, log_decay, state, segments):
        attend = functools.partial(
            gated_linear_attention, segments=segments, return_state=True, implementation=implementation
        )
        out, pull = jax.vjp(
            lambda q, k, v, a, state: attend(q, k, v, a, initial_state=state), q, k, v, log_decay, state
        )
        return out, pull(out)

    with use_abstract_mesh(AbstractMesh((), (), abstract_device=DEVICES[platform])):
        return jax.jit(gradients).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('platform', KERNELS)
@pytest.mark.parametrize(
    'call',
    [
        {'decay': None},
        {'decay': (4,)},
        {'decay': (4, 64), 'dtype': jnp.bfloat16},
        {'decay': (4,), 'dtype': jnp.bfloat16, 'keys': 80, 'values': 192},
        {'decay': (4, 128), 'keys': 128, 'values': 65, 'tokens': 1},
    ],
    ids=str,
)
def test_forward_and_backward_kernels_lower(platform, call):
    text = lowered(platform, implementation=KERNELS[platform], **call)
    assert text.count(CALLS[platform]) == 2


@pytest.mark.parametrize('platform', KERNELS)
def test_each_platform_gets_its_own_kernel_by_default(platform):
    text = lowered(platform, decay=(4,))
    assert text.count(CALLS[platform]) == 2
    assert not any(call in text for other, call in CALLS.items() if other != platform)


@pytest.mark.parametrize('call', [{'tokens': 1}, {'keys': 512, 'values': 520}, {'dtype': jnp.float16}], ids=str)
@pytest.mark.parametrize('platform', KERNELS)
def test_the_default_is_xla_where_no_kernel_serves(platform, call):
    assert CALLS[platform] not in lowered(platform, decay=(4,), **call)


def test_the_default_on_cpu_is_xla():
    shape = jax.ShapeDtypeStruct((1, 32, 1, 16), jnp.float32)
    text = jax.jit(gated_linear_attention).lower(shape, shape, shape, None).as_text()
    assert not any(call in text for call in CALLS.values())


@pytest.mark.parametrize(('platform', 'kernel'), [('cuda', 'pallas_tpu'), ('tpu', 'pallas_triton')])
def test_a_kernel_of_another_platform_is_an_error(platform, kernel):
    with pytest.raises(ValueError, match='Compiler params'):
        lowered(platform, decay=(4,), implementation=kernel)
