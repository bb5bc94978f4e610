"""Tetrahedra in the lumen: ``python examples/volume_mesh.py scan.prior.h5 lumen.msh``.

Gmsh keeps the triangles of the prior and fills every piece of the lumen. The physical groups of
the result are the parts of the surface by their names, and ``lumen``. Lengths are metres. Needs
the extra ``mesh``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gmsh

import vesselseg as vs
from vesselseg.export import export


def shells() -> list[list[int]]:
    """Group the surfaces that share corners: each group closes one piece of the lumen."""
    groups: list[tuple[set[int], list[int]]] = []
    for _, tag in gmsh.model.getEntities(2):
        corners, tags = set(gmsh.model.mesh.getElements(2, tag)[2][0].tolist()), [tag]
        for group in [g for g in groups if g[0] & corners]:
            groups.remove(group)
            corners, tags = corners | group[0], tags + group[1]
        groups.append((corners, tags))
    return [tags for _, tags in groups]


def mesh(prior: vs.BoundaryPrior, output: Path) -> int:
    """Mesh the lumen, write the mesh and return the number of tetrahedra."""
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        with tempfile.TemporaryDirectory() as folder:
            export(prior, "gmsh", Path(folder) / "surface")
            gmsh.open(str(Path(folder) / "surface.msh"))
        loops = [gmsh.model.geo.addSurfaceLoop(tags) for tags in shells()]
        volumes = [gmsh.model.geo.addVolume([loop]) for loop in loops]
        gmsh.model.geo.synchronize()
        gmsh.model.addPhysicalGroup(3, volumes, name="lumen")
        gmsh.model.mesh.generate(3)
        tetrahedra = gmsh.model.mesh.getElementsByType(4)[0]
        filled = gmsh.model.mesh.getElementQualities(tetrahedra, "volume").sum()
        expected = prior.attributes["/surface"]["volume_m3"]
        if abs(filled / expected - 1.0) > 1e-3:
            raise RuntimeError(f"Gmsh filled {filled:.4g} of {expected:.4g} m³; nothing is written")
        gmsh.option.setNumber("Mesh.MshFileVersion", 2.2)
        gmsh.write(str(output))
        return len(tetrahedra)
    finally:
        gmsh.finalize()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("prior", type=Path)
    options.add_argument("output", type=Path)
    given = options.parse_args()
    print(mesh(vs.BoundaryPrior.read(given.prior), given.output), "tetrahedra")
