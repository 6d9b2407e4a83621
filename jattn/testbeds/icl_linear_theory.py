"""Risks of in-context linear regression: exact ones, and the population loss of a reduced attention layer.

Prompts: weights w ~ N(0, I/F), covariates x ~ N(m, Sigma), labels y = w . x + noise of variance sigma^2, S examples; a
risk is the mean squared error on the query's label, its noise included. A predictor f = b . G x_q, linear in
b = 1/S sum_s y_s x_s (plain) or 1/S sum_s y_s (x_s - mean(x)) (debiased), errs by (w - G^T b) . x_q, hence

    risk(G) = sigma^2 + tr( M (I/F - A G - G^T A + G^T Q G) ),     M = E x x^T,  A = E w b^T,  Q = E b b^T,

and the best G is Q^-1 A. With Gaussian fourth moments, E x x^T x x^T = 2 M^2 + tr(M) M - 2 |m|^2 m m^T, and n = S - 1,

    plain      A = M / F,         Q = ((1 - 1/S) M^2 + 1/S (2 M^2 + tr(M) M - 2 |m|^2 m m^T)) / F + sigma^2/S M
    debiased   A = n/S Sigma / F, Q = (n/S)^2 ((1 + 1/n) Sigma^2 + tr(Sigma)/n Sigma) / F + sigma^2 n/S^2 Sigma.

For Sigma = I, m = 0 the best step of either is 1 / (1 + (F + 1 + sigma^2 F)/k) with k = S (plain) or k = n (debiased,
times S/n because its formula divides by S), and its risk is 1 + sigma^2 - 1 / (1 + (F + 1 + sigma^2 F)/k).

Reference: "In-Context Linear Regression Demystified" (softmax heads); the best pre-conditioner of plain gradient
descent is the one of trained linear attention. Sums are in float64 on the host, except the population loss, which is
differentiated.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jattn.typing import Array, Float


class Moments(NamedTuple):
    """The second moments that decide the risk of f = b . G x_q.

    Attributes:
        second: M = E x x^T, [F, F].
        cross: A = E w b^T, [F, F]; symmetric.
        square: Q = E b b^T, [F, F].
        noise_variance: sigma^2.
    """

    second: np.ndarray
    cross: np.ndarray
    square: np.ndarray
    noise_variance: float


def plain_moments(covariance: np.ndarray, mean: np.ndarray, context: int, noise_variance: float) -> Moments:
    """The moments of b = 1/S sum_s y_s x_s, for covariates N(mean [F], covariance [F, F]) and S = context."""
    covariance, mean = np.asarray(covariance, np.float64), np.asarray(mean, np.float64)
    outer = np.outer(mean, mean)
    second = covariance + outer
    fourth = 2 * second @ second + np.trace(second) * second - 2 * (mean @ mean) * outer
    gram = (1 - 1 / context) * second @ second + fourth / context
    return Moments(second, second / len(mean), gram / len(mean) + noise_variance / context * second, noise_variance)


def debiased_moments(covariance: np.ndarray, mean: np.ndarray, context: int, noise_variance: float) -> Moments:
    """The moments of b = 1/S sum_s y_s (x_s - mean(x)): the mean of the covariates enters through the query only."""
    covariance, mean = np.asarray(covariance, np.float64), np.asarray(mean, np.float64)
    freedom = context - 1
    second = covariance + np.outer(mean, mean)
    gram = (1 + 1 / freedom) * covariance @ covariance + np.trace(covariance) / freedom * covariance
    square = (freedom / context) ** 2 * gram / len(mean) + noise_variance * freedom / context**2 * covariance
    return Moments(second, freedom / context * covariance / len(mean), square, noise_variance)


def best_preconditioner(moments: Moments) -> np.ndarray:
    """G = Q^-1 A [F, F], the minimiser of `risk` over all matrices.

    >>> moments = plain_moments(np.eye(5), np.zeros(5), context=40, noise_variance=0.1)
    >>> float(best_preconditioner(moments)[0, 0].round(4)), round(best_step(moments), 4)
    (0.8602, 0.8602)
    """
    return np.linalg.solve(moments.square, moments.cross)


def best_step(moments: Moments) -> float:
    """eta = tr(M A) / tr(M Q), the minimiser of `risk` over multiples of the identity."""
    return float(np.sum(moments.second * moments.cross) / np.sum(moments.second * moments.square))


def risk(moments: Moments, step: float | np.ndarray) -> float:
    """The exact risk sigma^2 + tr(M (I/F - A G - G^T A + G^T Q G)) of f = b . G x_q.

    Args:
        moments: of `plain_moments` or `debiased_moments`.
        step: G, a number or [F, F].

    >>> plain, debiased = (m(np.eye(5), np.zeros(5), 40, 0.1) for m in (plain_moments, debiased_moments))
    >>> round(risk(plain, best_step(plain)), 5), round(risk(debiased, best_step(debiased)), 5)
    (0.23978, 0.24286)
    """
    size = len(moments.second)
    matrix = step * np.eye(size) if np.ndim(step) == 0 else np.asarray(step, np.float64)
    error = np.eye(size) / size - moments.cross @ matrix - matrix.T @ moments.cross + matrix.T @ moments.square @ matrix
    return float(moments.noise_variance + np.sum(moments.second * error))


def least_squares_risk(dim: int, context: int, noise_variance: float) -> float:
    """sigma^2 (1 + F / (S - F - 1)), for zero-mean Gaussian covariates of any covariance, and S > F + 1 examples.

    Raises:
        ValueError: too few examples: the mean does not exist, or is another formula's (the minimum-norm solution).

    >>> round(least_squares_risk(5, 40, 0.1), 5)
    0.11471
    """
    if context <= dim + 1:
        raise ValueError(f'least_squares_risk: context is {context}, but it must exceed dim + 1 = {dim + 1}')
    return noise_variance * (1 + dim / (context - dim - 1))


def ridge_risk(dim: int, context: int, noise_variance: float) -> float:
    """The Bayes risk for isotropic covariates, in the limit of large F at fixed xi = F/S.

    1/2 (sigma^2 + (xi - 1)/xi + sqrt(4 sigma^2 + (sigma^2 + (1 - xi)/xi)^2)).

    >>> round(ridge_risk(5, 40, 0.1), 4)
    0.1141
    """
    rest = context / dim - 1  # (1 - xi) / xi
    return 0.5 * (noise_variance - rest + math.sqrt(4 * noise_variance + (noise_variance + rest) ** 2))


def _read_noise(omega: Array, dim: int, context: int, noise_variance: float) -> Array:
    """(1 + sigma^2)/S exp(F omega_h omega_i), the second moment of what two heads read beside the signal, [H, H]."""
    return (1 + noise_variance) / context * jnp.exp(dim * omega[:, None] * omega[None, :])


def population_loss(
    omega: Float[Array, 'H'], mu: Float[Array, 'H'], dim: int, context: int, noise_variance: float
) -> Float[Array, '']:
    """The approximate risk of `reduced_attention` for isotropic covariates, from E exp(a . x) of Gaussian x.

    1 + sigma^2 - 2 mu . omega + mu^T (omega omega^T + (1 + sigma^2)/S exp(F omega omega^T)) mu, exp elementwise. It
    neglects the fluctuation of the softmax's normaliser, so it is low for large omega (one head: .372, simulated .40).

    >>> round(float(population_loss(*one_head_optimum(5, 40, 0.1), 5, 40, 0.1)), 5)
    0.37207
    """
    gram = omega[:, None] * omega[None, :] + _read_noise(omega, dim, context, noise_variance)
    return 1 + noise_variance - 2 * jnp.dot(mu, omega) + mu @ gram @ mu


def population_gradients(
    omega: Float[Array, 'H'], mu: Float[Array, 'H'], dim: int, context: int, noise_variance: float
) -> tuple[Float[Array, 'H'], Float[Array, 'H']]:
    """The gradients of `population_loss`, d/d omega and d/d mu; a gradient flow follows their negatives."""
    noise = _read_noise(omega, dim, context, noise_variance)
    signal = jnp.dot(mu, omega)
    by_omega = 2 * mu * (signal - 1 + dim * (noise @ (mu * omega)))
    by_mu = 2 * (omega * (signal - 1) + noise @ mu)
    return by_omega, by_mu


def best_values(omega: Float[Array, 'H'], dim: int, context: int, noise_variance: float) -> Float[Array, 'H']:
    """mu* = (omega omega^T + (1 + sigma^2)/S exp(F omega omega^T))^-1 omega, the minimiser over mu at fixed omega."""
    gram = omega[:, None] * omega[None, :] + _read_noise(omega, dim, context, noise_variance)
    return jnp.linalg.solve(gram, omega)


def one_head_optimum(dim: int, context: int, noise_variance: float) -> tuple[Float[Array, 'H'], Float[Array, 'H']]:
    """omega* = F^-1/2 and mu* = F^1/2 / (1 + (1 + sigma^2) e F/S), where `population_loss` of one head is least.

    Its value there is 1 + sigma^2 - 1 / (1 + (1 + sigma^2) e F/S).

    >>> omega, mu = one_head_optimum(5, 40, 0.1)
    >>> f'{omega[0]:.4f} {mu[0]:.4f}'
    '0.4472 1.6277'
    """
    shrink = 1 + (1 + noise_variance) * math.e * dim / context
    return jnp.array([dim**-0.5]), jnp.array([dim**0.5 / shrink])
