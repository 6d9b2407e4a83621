"""One attention layer without positions, residual or feed-forward, on joined tokens, and what its weights compute.

    f = sum_h O_h V_h Z^T p_h,    p_h = softmax( Z K_h^T Q_h z_q / sqrt(D) )         the S examples Z [S, D], query z_q

The query attends to the examples only. All matrices are D x D (D = F covariates and the labels), without bias, drawn
from U(-1, 1) / sqrt(fan in). Only two products matter, the circuits of head h:

    KQ_h = K_h^T Q_h / sqrt(D)   [D, D], which examples the query reads           OV_h = O_h V_h   [N, D], what is read

Trained on `ICLLinear` they become KQ_h = omega_h I on the covariates and OV_h = mu_h on the label, with the signs of
omega_h and mu_h equal, heads of both signs and sum_h mu_h = 0: debiased gradient descent with step sum_h mu_h omega_h.
KQ's label columns multiply the query's empty label slots, so they get no gradient and stay random: no measure reads
them. Reference: "In-Context Linear Regression Demystified". Kinds of pattern p: `PATTERNS`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn.testbeds.icl_linear import at_query
from jattn.typing import Array, Float, Key, at_least_float32, axis_sizes

Params = dict[str, Array]

# Scores [B, H, S] -> pattern. The linear form has no 1/S: its learned scale absorbs that of the training length.
PATTERNS: dict[str, Callable[[Array], Array]] = {
    'softmax': lambda scores: jax.nn.softmax(scores, axis=-1),
    'linear': lambda scores: scores,
    'linear_mean': lambda scores: scores / scores.shape[-1],
}


class Circuits(NamedTuple):
    """What the heads compute: KQ [H, D, D], the scores z_s . KQ z_q of every head, and OV [H, N, D]."""

    kq: Float[Array, 'H D D']
    ov: Float[Array, 'H N D']


def predict(circuits: Circuits, inputs: Float[Array, 'B T D'], pattern: str = 'softmax') -> Float[Array, 'B N']:
    """f = sum_h OV_h Z^T p_h: the layer as a function of its circuits; the last token is the query.

    >>> circuits = reduced_circuits(jnp.array([0.1, -0.1]), jnp.array([5.0, -5.0]), dim=1)
    >>> f = predict(circuits, jnp.array([[[1.0, 1.0], [3.0, 3.0], [2.0, 0.0]]]))
    >>> f'{f[0, 0]:.2f}'                  # debiased gradient descent with step 1 says 2
    '1.97'
    """
    axis_sizes('predict', inputs=(inputs, 'B T D'), kq=(circuits.kq, 'H D D'), ov=(circuits.ov, 'H N D'))
    examples, query = inputs[:, :-1], inputs[:, -1]
    probes = jnp.einsum('hde,be->bhd', circuits.kq, query)
    scores = jnp.einsum('bhd,bsd->bhs', probes, examples)
    scores = scores.astype(at_least_float32(scores))
    read = jnp.einsum('bhs,bsd->bhd', PATTERNS[pattern](scores), examples)
    return jnp.einsum('hnd,bhd->bn', circuits.ov, read)


def reduced_circuits(omega: Float[Array, 'H'], mu: Float[Array, 'H'], dim: int) -> Circuits:
    """The circuits of hand-set heads: KQ_h = omega_h I on `dim` covariates, OV_h = mu_h on the one label."""
    axis_sizes('reduced_circuits', omega=(omega, 'H'), mu=(mu, 'H'))
    covariates = (jnp.arange(dim + 1) < dim).astype(omega.dtype)
    kq = omega[:, None, None] * jnp.diag(covariates)[None]
    return Circuits(kq, mu[:, None, None] * (1 - covariates)[None, None])


@dataclasses.dataclass(frozen=True)
class OneLayer:
    """The layer's sizes; parameters are {query, key, value: [H, D, D], output: [H, N, D]}.

    Attributes:
        heads: H.
        features: D, a task's `input_size`.
        outputs: N, a task's `output_size`.
        pattern: a name in `PATTERNS`.

    >>> layer = OneLayer(heads=2)
    >>> layer.apply(layer.init(jax.random.key(0)), jnp.ones((3, 41, 6))).shape
    (3, 41, 1)
    """

    heads: int
    features: int = 6
    outputs: int = 1
    pattern: str = 'softmax'

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f'OneLayer: heads is {self.heads}, but at least one is needed')
        if self.pattern not in PATTERNS:
            raise ValueError(f'OneLayer: pattern is {self.pattern!r}, but it must be one of {", ".join(PATTERNS)}')

    def init(self, key: Key, opposite: bool = False) -> Params:
        """Draws every matrix from U(-1, 1) / sqrt(fan in).

        Args:
            key: the seed.
            opposite: heads start in pairs: the second half has the first half's keys and minus its queries, hence
                opposite scores, and every output's sign makes mu_h agree with omega_h (sizes stay as drawn). From
                independent draws two heads can start alike and stay at the solution of one head.
        """
        if opposite and self.heads % 2:
            raise ValueError(f'OneLayer: heads is {self.heads}, but opposite heads come in pairs')
        if opposite and (self.outputs, self.pattern) != (1, 'softmax'):
            raise ValueError('OneLayer: opposite heads are defined for the softmax pattern and one output')
        square, wide = (self.heads, self.features, self.features), (self.heads, self.outputs, self.features)
        keys = jax.random.split(key, 4)
        bound = 1 / math.sqrt(self.features)
        params = {
            name: jax.random.uniform(k, square, minval=-bound, maxval=bound)
            for name, k in zip(('query', 'key', 'value'), keys)
        }
        bound /= math.sqrt(self.heads)  # the fan in of O is all heads together
        params['output'] = jax.random.uniform(keys[3], wide, minval=-bound, maxval=bound)
        if opposite:
            half = self.heads // 2
            params['key'] = jnp.concatenate([params['key'][:half]] * 2)
            params['query'] = jnp.concatenate([params['query'][:half], -params['query'][:half]])
            read = measures(self.circuits(params))
            params['output'] *= jnp.sign(read.omega * read.mu)[:, None, None]
        return params

    def circuits(self, params: Params) -> Circuits:
        """KQ_h = K_h^T Q_h / sqrt(D) and OV_h = O_h V_h (the linear patterns have no 1/sqrt(D))."""
        scale = 1 / math.sqrt(self.features) if self.pattern == 'softmax' else 1.0
        kq = scale * jnp.einsum('hkd,hke->hde', params['key'], params['query'])
        return Circuits(kq, jnp.einsum('hnk,hkd->hnd', params['output'], params['value']))

    def apply(self, params: Params, inputs: Float[Array, 'B T D']) -> Float[Array, 'B T N']:
        """Outputs as a task scores them: the prediction at the last token, zeros elsewhere."""
        return at_query(predict(self.circuits(params), inputs, self.pattern), inputs.shape[1])


class Measures(NamedTuple):
    """What trained circuits look like; one number a head [H] unless it says otherwise.

    Attributes:
        omega: tr(KQ_h) / F over the covariates.
        mu: OV_h at the label.
        diagonal_share: sum_i KQ_ii^2 over the sum of KQ^2 in the covariates' columns; 1 = diagonal.
        inhomogeneity: std of the diagonal / |omega|; 0 = a multiple of the identity.
        label_share: mu^2 / |OV_h|^2; 1 = reads the label only.
        label_row: largest |KQ| in the label's row: how far scores depend on the examples' labels.
        active: |mu omega| is at least a twentieth of the largest; the others are dummies.
        step: eta = sum_h mu_h omega_h, a scalar.
        zero_sum: |sum_h mu_h| / sum_h |mu_h|, a scalar; 0 = a constant in the labels cancels.
        sign_match: share of the active heads with omega and mu of one sign, a scalar.
        sign_balance: the lighter sign's sum |mu| over the heavier's, a scalar; 1 = positive and negative weigh alike.
    """

    omega: Float[Array, 'H']
    mu: Float[Array, 'H']
    diagonal_share: Float[Array, 'H']
    inhomogeneity: Float[Array, 'H']
    label_share: Float[Array, 'H']
    label_row: Float[Array, 'H']
    active: Float[Array, 'H']
    step: Float[Array, '']
    zero_sum: Float[Array, '']
    sign_match: Float[Array, '']
    sign_balance: Float[Array, '']


def measures(circuits: Circuits) -> Measures:
    """Reads `Measures` from the circuits of a layer with one label (N = 1, D = F + 1).

    >>> read = measures(reduced_circuits(jnp.array([0.2, -0.2]), jnp.array([2.0, -2.0]), dim=5))
    >>> round(float(read.step), 4), float(read.zero_sum), read.diagonal_share.tolist()
    (0.8, 0.0, [1.0, 1.0])
    """
    axis_sizes('measures', kq=(circuits.kq, 'H D D'), ov=(circuits.ov, 'H 1 D'))
    dim = circuits.kq.shape[-1] - 1
    columns = circuits.kq[:, :, :dim]
    diagonal = jnp.diagonal(columns[:, :dim], axis1=1, axis2=2)
    omega, mu = jnp.mean(diagonal, axis=-1), circuits.ov[:, 0, dim]
    strength = jnp.abs(mu * omega)
    active = strength >= jnp.max(strength) / 20
    positive, negative = jnp.sum(jnp.maximum(mu, 0)), jnp.sum(jnp.maximum(-mu, 0))
    return Measures(
        omega=omega,
        mu=mu,
        diagonal_share=jnp.sum(jnp.square(diagonal), axis=-1) / jnp.sum(jnp.square(columns), axis=(1, 2)),
        inhomogeneity=jnp.std(diagonal, axis=-1) / jnp.abs(omega),
        label_share=jnp.square(mu) / jnp.sum(jnp.square(circuits.ov[:, 0]), axis=-1),
        label_row=jnp.max(jnp.abs(columns[:, dim]), axis=-1),
        active=active,
        step=jnp.dot(mu, omega),
        zero_sum=jnp.abs(jnp.sum(mu)) / jnp.sum(jnp.abs(mu)),
        sign_match=jnp.sum(active * (mu * omega > 0)) / jnp.sum(active),
        sign_balance=jnp.minimum(positive, negative) / jnp.maximum(positive, negative),
    )


def effective_preconditioner(circuits: Circuits) -> Float[Array, 'F F']:
    """sum_h mu_h KQ_h on the covariates: the G of the gradient step that opposite heads of small omega compute."""
    axis_sizes('effective_preconditioner', kq=(circuits.kq, 'H D D'), ov=(circuits.ov, 'H 1 D'))
    dim = circuits.kq.shape[-1] - 1
    return jnp.einsum('h,hde->de', circuits.ov[:, 0, dim], circuits.kq[:, :dim, :dim])


def prediction_gap(predictions: Float[Array, 'B'], reference: Float[Array, 'B']) -> Float[Array, '']:
    """E (f - reference)^2 / Var f: how far two predictors differ, in units of the first one's variance."""
    return jnp.mean(jnp.square(predictions - reference)) / jnp.var(predictions)
