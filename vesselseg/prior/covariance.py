"""The Gaussian field of wall positions: C = D K D with K = A⁻ᵐ and A = I - ℓ²Δ_h.

Δ_h is the second-order Laplacian with zero flux at the faces of the box, so the cosine transform
of type II diagonalises A exactly: λ(k) = 1 + Σ_a (2ℓ/h_a sin(πk_a/2n_a))². Everything here follows
from that; no linear system is solved. Whittle, Biometrika 41 (1954) 434; Lindgren, Rue and
Lindström, J. R. Stat. Soc. B 73 (2011) 423, section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

OVERSAMPLED = 10
POWER_STEPS = 4


def eigenvalues(
    shape: tuple[int, ...], spacing: tuple[float, ...], ell: float
) -> NDArray[np.float64]:
    """Return λ of A on the cosine modes, in the shape of the grid."""
    total = np.ones(shape)
    for axis, (n, h) in enumerate(zip(shape, spacing, strict=True)):
        wave = (2.0 * ell / h * np.sin(np.pi * np.arange(n) / (2 * n))) ** 2
        total += wave.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return total


def normaliser(
    shape: tuple[int, ...], spacing: tuple[float, ...], ell: float, m: int
) -> NDArray[np.float64]:
    """Return s = √diag(K), the discrete diagonal itself.

    K_ii = Σ_k λ(k)⁻ᵐ Π_a c_a(k_a, i_a)², where c is the orthonormal cosine basis: the squared
    basis is applied along one axis after the other.

    Parameters
    ----------
    shape : tuple of int
        Grid, array order.
    spacing : tuple of float
        Voxel size per array axis, in the unit of ``ell``.
    ell : float
        Correlation length ℓ.
    m : int
        Order, larger than half the dimension.
    """
    total = eigenvalues(shape, spacing, ell) ** -m
    for axis, n in enumerate(shape):
        moved = np.tensordot(_squared_cosines(n), total, axes=(1, axis))
        total = np.moveaxis(moved, 0, axis)
    return np.ascontiguousarray(np.sqrt(total))


def apply_power(
    values: Any, spacing: tuple[float, ...], ell: float, power: float
) -> NDArray[np.float64]:
    """Return A^power applied to a field on the grid."""
    from scipy.fft import dctn, idctn

    field = np.asarray(values, dtype=np.float64)
    modes = dctn(field, norm="ortho", overwrite_x=False)
    modes *= eigenvalues(field.shape, spacing, ell) ** power
    result: NDArray[np.float64] = idctn(modes, norm="ortho", overwrite_x=True)
    return result


def draw(
    std: Floats,
    normal: Floats,
    spacing: tuple[float, ...],
    ell: float,
    m: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return one draw D A^(-m/2) ξ with ξ ~ N(0, I) and D = diag(std / normaliser)."""
    white = rng.standard_normal(std.shape)
    return apply_power(white, spacing, ell, -m / 2) * (std / normal)


def modes(
    std: Floats,
    normal: Floats,
    spacing: tuple[float, ...],
    ell: float,
    m: int,
    rank: int,
    where: NDArray[np.bool_],
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest directions of the covariance restricted to some voxels.

    Randomised subspace iteration with the operator itself (Halko, Martinsson and Tropp, SIAM Rev.
    53 (2011) 217, algorithm 4.4); no matrix is formed.

    Parameters
    ----------
    rank : int
        How many.
    where : grid bool
        Voxels that count, such as those near the wall; modes are zero elsewhere.

    Returns
    -------
    vectors : (rank, grid)
        Orthonormal over the voxels.
    values : (rank,)
        Variances along them, falling, in the unit of ``std`` squared.
    """
    index = np.flatnonzero(where)
    scale = (np.asarray(std, dtype=np.float64) / normal).ravel()

    def applied(vectors: Floats) -> NDArray[np.float64]:
        out = np.empty(vectors.shape)
        for column in range(vectors.shape[1]):
            field = np.zeros(std.size)
            field[index] = vectors[:, column] * scale[index]
            field = apply_power(field.reshape(std.shape), spacing, ell, -m).ravel()
            out[:, column] = field[index] * scale[index]
        return out

    rng = np.random.default_rng(seed)
    width = min(rank + OVERSAMPLED, index.size)
    basis = np.linalg.qr(applied(rng.standard_normal((index.size, width))))[0]
    for _ in range(POWER_STEPS):
        basis = np.linalg.qr(applied(basis))[0]
    values, turn = np.linalg.eigh(basis.T @ applied(basis))
    order = np.argsort(values)[::-1][:rank]
    vectors = np.zeros((len(order), std.size))
    vectors[:, index] = (basis @ turn[:, order]).T
    return vectors.reshape(-1, *std.shape), np.asarray(values[order], dtype=np.float64)


def log_density(
    offset: Floats, std: Floats, normal: Floats, spacing: tuple[float, ...], ell: float, m: int
) -> float:
    """Return -½ |A^(m/2) D⁻¹ offset|²: the log density without its constant."""
    scaled = np.asarray(offset, dtype=np.float64) * (normal / np.asarray(std, dtype=np.float64))
    return -0.5 * float(np.sum(apply_power(scaled, spacing, ell, m / 2) ** 2))


def functional_std(
    index: Floats,
    weights: Floats,
    std: Floats,
    normal: Floats,
    spacing: tuple[float, ...],
    ell: float,
    m: int,
) -> float:
    """Return the s.d. of Σ w_k φ(x_k): |A^(-m/2) D w| with w spread linearly over the samples.

    Parameters
    ----------
    index : (n, ndim)
        Points in index units, array order, clamped to the grid.
    weights : (n,)
    std, normal : grid
        ``phi_std`` and ``normaliser``; only a neighbourhood of six lengths ℓ is used.
    """
    shape = np.array(std.shape)
    index = np.clip(index, 0, shape - 1)
    reach = np.ceil(6.0 * ell / np.array(spacing)).astype(int) + 2
    low = np.maximum(np.floor(index.min(axis=0)).astype(int) - reach, 0)
    high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + reach + 1, shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    base = np.minimum(np.floor(index).astype(int), shape - 2)
    share = index - base
    spread = np.zeros(tuple(high - low))
    for corner in np.ndindex(*(2,) * len(shape)):
        part = np.where(np.array(corner) == 1, share, 1.0 - share).prod(axis=1)
        np.add.at(spread, tuple((base + corner - low).T), weights * part)
    scaled = spread * (np.asarray(std[box], dtype=np.float64) / normal[box])
    return float(np.linalg.norm(apply_power(scaled, spacing, ell, -m / 2)))


def _squared_cosines(n: int) -> NDArray[np.float64]:
    """(sample, mode): squares of the orthonormal cosine basis of type II."""
    angle = np.pi * (2 * np.arange(n)[:, None] + 1) * np.arange(n)[None, :] / n
    basis = (1.0 + np.cos(angle)) / n
    basis[:, 0] = 1.0 / n
    return basis
