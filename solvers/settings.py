"""Settings of a refinement."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vesselseg.config import Settings


class RefineSettings(Settings):
    """How a level set is refined on an image.

    Lengths are in units of the largest voxel size, so that one setting serves all scans.
    """

    energy: Literal["map", "gac", "chan_vese", "local", "given"] = "map"
    iterations: Annotated[int, Field(ge=1, le=1000)] = 20
    band: Annotated[float, Field(ge=4.0, le=20.0)] = 4.5
    """Half-width of the trusted band."""
    psf: Annotated[float, Field(gt=0, le=3.0)] | None = None
    """S.d. of the point spread in voxels without the voxel box; estimated if absent."""
    means_length: Annotated[float, Field(ge=2.0, le=1000.0)] = 4.0
    """Length over which the intensities of lumen and surroundings may vary."""
    profile: Literal["lumen", "flow"] = "lumen"
    """map: what the scan shows of the blood. ``flow``: its speed, or the magnitude times its speed
    (PC-MRA), which falls to nothing at the wall."""
    averages: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.0
    """Magnitude images whose mean the scan is: each had more noise than the mean has, and that
    lifts what is dark."""
    tolerance: Annotated[float, Field(gt=0, lt=1.0)] = 0.01
    """Stop when the root-mean-square step is shorter."""
    volume_limits: tuple[float, float] = Field((0.2, 5.0), strict=False)
    """Watchdog: lumen volume relative to the start's."""
    keep_topology: bool = False
    """Never split, merge, open or close the lumen; see ``solvers.topology.keep_topology``."""
    smoothing: Annotated[float, Field(ge=0, le=10.0)] = 0.3
    """Flows but the given one: weight of the wall's curvature."""
    balloon: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    """gac: speed on flat ground, positive outward, of a start far from the edges."""
    edge_width: Annotated[float, Field(ge=0.3, le=5.0)] = 0.8
    """gac: s.d. in voxels of the filter before the slopes of the image are taken."""
    time: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """given: how long the speed acts."""
