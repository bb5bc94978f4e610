"""Stokes flow in the lumen: ``python examples/stokes.py lumen.msh inlet --pressure 10``.

The mesh is that of ``volume_mesh.py``. One opening is held at a pressure, the others at none; the
wall does not slip; where the lumen leaves the box without an opening (``closure``) there is no
pressure either. Prints the flow rate out of every opening. SI units. Needs the extras ``mesh`` and
``flow``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from skfem import (
    Basis,
    BilinearForm,
    ElementTetP1,
    ElementTetP2,
    ElementVector,
    FacetBasis,
    Functional,
    LinearForm,
    MeshTet,
    bmat,
    condense,
    solve,
)
from skfem.helpers import ddot, div, dot, grad

VISCOSITY = 3.5e-3  # Pa s


def flow_rates(mesh: MeshTet, inlet: str, pressure: float = 1.0) -> dict[str, float]:
    """Solve with Taylor-Hood elements; return the flow rate (m³/s) out of every opening.

    Lengths are brought to a millimetre first, so that the matrix is well scaled.
    """
    small = mesh.scaled(1e3)
    velocity = Basis(small, ElementVector(ElementTetP2()), intorder=4)
    tension = velocity.with_element(ElementTetP1())

    @BilinearForm
    def stiffness(u, v, w):
        return ddot(grad(u), grad(v))

    @BilinearForm
    def divergence(u, q, w):
        return -div(u) * q

    @LinearForm
    def push(v, w):
        return -dot(w.n, v)

    @Functional
    def out(w):
        return dot(w["u"], w.n)

    a, b = stiffness.assemble(velocity), divergence.assemble(velocity, tension)
    load = push.assemble(FacetBasis(small, velocity.elem, facets=small.boundaries[inlet]))
    matrix = bmat([[a, b.T], [b, None]], "csr")
    right = np.concatenate([load, np.zeros(b.shape[0])])
    fixed = velocity.get_dofs(small.boundaries["wall"])
    found = solve(*condense(matrix, right, D=fixed))[: a.shape[0]]
    rates = {}
    for name in small.boundaries:
        if name != "wall":
            faces = FacetBasis(small, velocity.elem, facets=small.boundaries[name], intorder=4)
            rate = out.assemble(faces, u=faces.interpolate(found))
            rates[name] = float(rate) * pressure / VISCOSITY * 1e-9
    return rates


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("mesh", type=Path)
    options.add_argument("inlet", help="name of the opening under pressure")
    options.add_argument("--pressure", type=float, default=10.0, help="Pa")
    given = options.parse_args()
    lumen = MeshTet.load(given.mesh)
    known = sorted({*lumen.boundaries} - {"wall"})
    if given.inlet not in known:
        options.error(f"no opening {given.inlet}; {given.mesh} has {', '.join(known) or 'none'}")
    for opening, rate in flow_rates(lumen, given.inlet, given.pressure).items():
        print(f"{opening}: {rate * 1e6:+.4g} ml/s")
