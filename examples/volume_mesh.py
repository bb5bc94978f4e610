"""Tetrahedra in the lumen: ``python examples/volume_mesh.py scan.prior.h5 lumen.msh``.

Gmsh keeps the triangles of the prior and fills them. The physical groups of the result are the
parts of the surface by their names, and ``lumen``. Lengths are metres. Needs the extra ``mesh``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gmsh

import vesselseg as vs
from vesselseg.export import export


def mesh(prior: vs.BoundaryPrior, output: Path) -> int:
    """Mesh the lumen, write the mesh and return the number of tetrahedra."""
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        with tempfile.TemporaryDirectory() as folder:
            export(prior, "gmsh", Path(folder) / "surface")
            gmsh.open(str(Path(folder) / "surface.msh"))
        surfaces = [tag for _, tag in gmsh.model.getEntities(2)]
        loop = gmsh.model.geo.addSurfaceLoop(surfaces)
        volume = gmsh.model.geo.addVolume([loop])
        gmsh.model.geo.synchronize()
        gmsh.model.addPhysicalGroup(3, [volume], name="lumen")
        gmsh.model.mesh.generate(3)
        gmsh.option.setNumber("Mesh.MshFileVersion", 2.2)
        gmsh.write(str(output))
        return len(gmsh.model.mesh.getElementsByType(4)[0])
    finally:
        gmsh.finalize()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("prior", type=Path)
    options.add_argument("output", type=Path)
    given = options.parse_args()
    print(mesh(vs.BoundaryPrior.read(given.prior), given.output), "tetrahedra")
