"""The Gaussian field of wall positions: C = D K D with K = A⁻ᵐ and A = I - ℓ²Δ_h.

Δ_h is the second-order Laplacian with zero flux at the faces of the box, so the cosine transform
of type II diagonalises A exactly: λ(k) = 1 + Σ_a (2ℓ/h_a sin(πk_a/2n_a))². Everything here follows
from that; no linear system is solved. Whittle, Biometrika 41 (1954) 434; Lindgren, Rue and
Lindström, J. R. Stat. Soc. B 73 (2011) 423, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

OVERSAMPLED = 10
POWER_STEPS = 4


@dataclass(frozen=True)
class Elliptic:
    """The operator A and the order of K.

    Parameters
    ----------
    spacing : tuple of float
        Voxel size per array axis.
    ell : float
        Correlation length ℓ, in the unit of the spacing.
    m : int
        Order, larger than half the dimension.
    revolved : bool
        Whether the first axis is the distance from an axis of revolution, from half a sample on.
    """

    spacing: tuple[float, ...]
    ell: float
    m: int
    revolved: bool = False

    def eigenvalues(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return λ of A (revolved: of B) on its modes, in the shape of the grid."""
        total = np.ones(shape)
        for axis, (n, h) in enumerate(zip(shape, self.spacing, strict=True)):
            if self.revolved and axis == 0:
                wave = (self.ell / h) ** 2 * _radial_modes(n)[0]
            else:
                wave = (2.0 * self.ell / h * np.sin(np.pi * np.arange(n) / (2 * n))) ** 2
            total += wave.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        return total

    def normaliser(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return s = √diag(K) (revolved: √diag(B⁻ᵐ)), the discrete diagonal itself.

        K_ii = Σ_k λ(k)⁻ᵐ Π_a c_a(k_a, i_a)², where c is the orthonormal basis of an axis: the
        squared basis is applied along one axis after the other.
        """
        total = self.eigenvalues(shape) ** -self.m
        for axis, n in enumerate(shape):
            radial = self.revolved and axis == 0
            squares = _radial_modes(n)[1] ** 2 if radial else _squared_cosines(n)
            total = np.moveaxis(np.tensordot(squares, total, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(np.sqrt(total))

    def apply_power(self, values: Any, power: float) -> NDArray[np.float64]:
        """Return A^power (revolved: B^power) applied to a field on the grid."""
        from scipy.fft import dctn, idctn

        field = np.asarray(values, dtype=np.float64)
        axes = tuple(range(int(self.revolved), field.ndim))
        basis = _radial_modes(len(field))[1] if self.revolved else None
        modes = field if basis is None else basis.T @ field
        modes = dctn(modes, axes=axes, norm="ortho")
        modes *= self.eigenvalues(field.shape) ** power
        result: NDArray[np.float64] = idctn(modes, axes=axes, norm="ortho", overwrite_x=True)
        return result if basis is None else basis @ result


def draw(
    std: Floats, normal: Floats, operator: Elliptic, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return one draw D A^(-m/2) ξ with ξ ~ N(0, I) and D = diag(std / normaliser)."""
    white = rng.standard_normal(std.shape)
    return operator.apply_power(white, -operator.m / 2) * (std / normal)


def modes(
    std: Floats,
    normal: Floats,
    operator: Elliptic,
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
            field = operator.apply_power(field.reshape(std.shape), -operator.m).ravel()
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


def log_density(offset: Floats, std: Floats, normal: Floats, operator: Elliptic) -> float:
    """Return -½ |A^(m/2) D⁻¹ offset|²: the log density without its constant."""
    scaled = np.asarray(offset, dtype=np.float64) * (normal / np.asarray(std, dtype=np.float64))
    return -0.5 * float(np.sum(operator.apply_power(scaled, operator.m / 2) ** 2))


def functional_std(
    index: Floats,
    weights: Floats,
    std: Floats,
    normal: Floats,
    operator: Elliptic,
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
    reach = np.ceil(6.0 * operator.ell / np.array(operator.spacing)).astype(int) + 2
    low = np.maximum(np.floor(index.min(axis=0)).astype(int) - reach, 0)
    low[0] *= not operator.revolved  # a box that begins elsewhere has another axis
    high = np.minimum(np.ceil(index.max(axis=0)).astype(int) + reach + 1, shape)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    base = np.minimum(np.floor(index).astype(int), shape - 2)
    share = index - base
    spread = np.zeros(tuple(high - low))
    for corner in np.ndindex(*(2,) * len(shape)):
        part = np.where(np.array(corner) == 1, share, 1.0 - share).prod(axis=1)
        np.add.at(spread, tuple((base + corner - low).T), weights * part)
    scaled = spread * (np.asarray(std[box], dtype=np.float64) / normal[box])
    return float(np.linalg.norm(operator.apply_power(scaled, -operator.m / 2)))


def _squared_cosines(n: int) -> NDArray[np.float64]:
    """(sample, mode): squares of the orthonormal cosine basis of type II."""
    angle = np.pi * (2 * np.arange(n)[:, None] + 1) * np.arange(n)[None, :] / n
    basis = (1.0 + np.cos(angle)) / n
    basis[:, 0] = 1.0 / n
    return basis


@cache
def _radial_modes(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues and modes (row, mode) of -h² r^(1/2) Δ_r r^(-1/2) on n rows.

    Row j lies at r = (j + 1/2) h; the flux between rows j - 1 and j carries the weight j h, so
    none crosses the axis.
    """
    from scipy.linalg import eigh_tridiagonal

    row = np.arange(n)
    flux = np.append(row, 0.0)  # below each row, and none above the last
    values, modes = eigh_tridiagonal(
        (flux[:-1] + flux[1:]) / (row + 0.5),
        -flux[1:-1] / np.sqrt((row[1:] - 0.5) * (row[1:] + 0.5)),
    )
    return np.maximum(values, 0.0), modes
