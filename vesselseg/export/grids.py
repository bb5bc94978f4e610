"""Fields on the grid of the scan: images, lattices, and the inputs of learning solvers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import Scene

Files = dict[str, bytes]

# D3Q19 without the rest: along (x, y, z)
LATTICE = np.array(
    [
        (x, y, z)
        for z in (-1, 0, 1)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if 0 < abs(x) + abs(y) + abs(z) < 3
    ]
)


def nifti(scene: Scene) -> Files:
    """Write mask, distance and its standard deviation in mm on the grid of the scan."""
    from ..io.nifti import image_bytes

    fields = {
        "mask": scene.field("/geometry/mask"),
        "phi": scene.prior.phi_mean_mm.astype(np.float32),
        "phi_std": scene.prior.phi_std_mm.astype(np.float32),
    }
    return {f"_{name}.nii.gz": image_bytes(f, scene.prior.grid) for name, f in fields.items()}


def peclet(scene: Scene) -> Files:
    """Write the distance for peclet-flow: (nx, ny, nz), positive in the fluid."""
    phi = np.asarray(scene.field("/geometry/phi_mean"), dtype=np.float64) * scene.scale
    size = np.array(phi.shape[::-1])
    arrays = {
        "sdf": np.asfortranarray(-phi.T),
        "cells": size,
        "extent": size * np.array(scene.spacing),
        "ijk_to_ras": scene.affine,
    }
    return {".npz": _npz(scene, arrays)}


def cutfem(scene: Scene) -> Files:
    """Write the distance at the corners of the voxels: one node more along every axis.

    Values are those of the cubic spline through the samples, which goes on straight beyond the
    outer ones, and evenly across an axis of revolution.
    """
    phi = np.asarray(scene.field("/geometry/phi_mean"), dtype=np.float64)
    bound, node_to_ras = float(np.abs(phi).max()), scene.affine.copy()
    for axis in range(phi.ndim):
        phi = _at_nodes(phi, axis, even=scene.prior.axisymmetric and axis == 0)
        node_to_ras[:3, 3] -= 0.5 * scene.affine[:3, axis]
    arrays = {
        "phi": np.clip(phi, -bound, bound) * scene.scale,
        "node_to_ras": node_to_ras,
        "spacing_ijk": np.array(scene.spacing),
    }
    return {".npz": _npz(scene, arrays)}


def _at_nodes(values: NDArray[np.float64], axis: int, *, even: bool) -> NDArray[np.float64]:
    """Return the values half a sample before, between and half a sample after the samples."""
    from scipy.interpolate import make_interp_spline

    first, second = (np.take(values, [n], axis) for n in (0, 1))
    last, before = (np.take(values, [n], axis) for n in (-1, -2))
    ghost = first if even else 2.0 * first - second
    padded = np.concatenate([ghost, values, 2.0 * last - before], axis)
    places = np.arange(-1, values.shape[axis] + 1)
    spline = make_interp_spline(places, padded, k=3, axis=axis)
    return np.asarray(spline(places[:-1] + 0.5))


def lbm(scene: Scene) -> Files:
    """Write flags, link fractions and volume fractions of a lattice on the scan's grid.

    Flags: 0 solid beyond the wall, 1 fluid, 2 solid next to the fluid, and from 3 on the openings
    in the order of their labels. A link fraction is the share of the way from a fluid sample to
    its solid neighbour at which phi = 0; -1 where the link does not meet the wall.
    """
    phi = np.asarray(scene.field("/geometry/phi_mean"), dtype=np.float64)
    fluid = scene.field("/boundary/domain") != 0
    near = scene.field("/boundary/label")
    fraction = np.full((len(LATTICE), *phi.shape), -1.0, dtype=np.float32)
    touched = np.zeros(phi.shape, dtype=bool)
    for number, (x, y, z) in enumerate(LATTICE):
        here, there = _shifted((z, y, x), phi.shape)
        cut = fluid[here] & (phi[here] < 0) & (phi[there] >= 0)
        share = phi[here] / np.where(cut, phi[here] - phi[there], 1.0)
        fraction[number][here] = np.where(cut, share, -1.0)
        touched[there] |= fluid[here] & ~fluid[there]
    flags = np.where(fluid, 1, np.where(touched, 2, 0)).astype(np.uint8)
    for row in scene.prior.openings:
        flags[touched & (near == row["label"])] = row["label"] + 1
    volume = scene.field("/geometry/volume_fraction")
    arrays: dict[str, Any] = {
        "flags": flags,
        "directions_xyz": LATTICE,
        "link_fraction": fraction,
        "volume_fraction": volume,
        "spacing_ijk": np.array(scene.spacing),
        "ijk_to_ras": scene.affine,
    }
    for axis, name in enumerate("zyx"):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        arrays[f"face_fraction_{name}"] = 0.5 * (volume[tuple(low)] + volume[tuple(high)])
    return {".npz": _npz(scene, arrays)}


def xdmf(scene: Scene) -> Files:
    """Write the cells near and in the lumen as hexahedra between samples, with their fields."""
    phi = np.asarray(scene.field("/geometry/phi_mean"))
    half = float(scene.prior.attributes["/geometry/phi_mean"]["band_halfwidth_m"])
    kept = phi <= half
    cell = np.zeros([n - 1 for n in phi.shape], dtype=bool)
    offsets = [(0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0)]  # around the bottom, then the top
    offsets += [(1, y, x) for _, y, x in offsets]
    if np.linalg.det(scene.affine[:3, :3]) < 0:
        offsets = offsets[4:] + offsets[:4]  # mirrored cells would be inside out
    views = [
        tuple(slice(o, n - 1 + o) for o, n in zip(offset, phi.shape, strict=True))
        for offset in offsets
    ]
    for view in views:
        cell |= kept[view]
    flat = np.arange(phi.size).reshape(phi.shape)
    corners = np.stack([flat[view][cell] for view in views], axis=1)
    used, numbered = np.unique(corners, return_inverse=True)
    index = np.stack(np.unravel_index(used, phi.shape), axis=1)[:, ::-1]
    arrays: dict[str, NDArray] = {
        "points": index @ scene.affine[:3, :3].T + scene.affine[:3, 3],
        "cells": numbered.reshape(corners.shape).astype(np.int64),
        "phi": (phi.ravel()[used] * scene.scale).astype(np.float32),
        "phi_std": (scene.prior.phi_std_m.ravel()[used] * scene.scale).astype(np.float32),
        "label": scene.field("/boundary/label").ravel()[used],
        "normal": scene.field("/geometry/normal").reshape(-1, 3)[used],
    }

    def item(name: str) -> str:
        array = arrays[name]
        kind = {"f": "Float", "i": "Int", "u": "UChar"}[array.dtype.kind]
        shape = " ".join(str(n) for n in array.shape)
        return (
            f'<DataItem DataType="{kind}" Precision="{array.itemsize}" Dimensions="{shape}" '
            f'Format="HDF">{scene.name}.h5:/{name}</DataItem>'
        )

    fields = "".join(
        f'<Attribute Name="{n}" AttributeType="{"Vector" if n == "normal" else "Scalar"}" '
        f'Center="Node">{item(n)}</Attribute>'
        for n in ("phi", "phi_std", "label", "normal")
    )
    text = (
        f'<?xml version="1.0"?>\n<!-- RAS+ {scene.unit} -->\n'
        '<Xdmf Version="3.0"><Domain><Grid Name="samples">\n'
        f'<Topology TopologyType="Hexahedron" NumberOfElements="{len(corners)}">{item("cells")}'
        f'</Topology>\n<Geometry GeometryType="XYZ">{item("points")}</Geometry>\n{fields}\n'
        "</Grid></Domain></Xdmf>\n"
    )
    return {".xdmf": text.encode(), ".h5": _hdf5(arrays, {"unit": scene.unit, "frame": "RAS+"})}


def fourdflownet(scene: Scene) -> Files:
    """Write 4DFlowNet's layout: (frames, i, j, k), velocities in m/s, spacing in mm.

    The layout has no orientation: its components are those along the axes of the arrays.
    """
    along = scene.affine[:3, :3] / np.linalg.norm(scene.affine[:3, :3], axis=0)
    u = np.moveaxis(scene.velocity() @ along, -1, 0).swapaxes(2, 4)
    frames = u.shape[1]
    magnitude = np.broadcast_to(scene.field("/images/magnitude").T, u.shape[1:])
    measured = np.asarray(scene.prior.attributes["/velocity"]["venc_ms"])
    venc = np.max(np.where(np.abs(along.T) > 1e-3, measured, 0.0), axis=1)  # of all that share
    arrays: dict[str, Any] = {
        "dx": np.tile(np.array(scene.prior.grid.spacing_mm[::-1]), (frames, 1)),
        "mask": scene.field("/geometry/volume_fraction").T[None].astype(np.float32),
    }
    for part, name in enumerate("uvw"):
        arrays[name] = u[part].astype(np.float32)
        arrays[f"mag_{name}"] = magnitude.astype(np.float32)
        arrays[f"venc_{name}"] = np.full(frames, venc[part], dtype=np.float32)
    return {".h5": _hdf5(arrays, {})}


def inr(scene: Scene) -> Files:
    """Write points for networks of coordinates: samples of the flow, and the wall with its s.d."""
    inside = scene.field("/boundary/domain") != 0
    index = np.argwhere(inside)[:, ::-1]
    columns = scene.affine[:3, : index.shape[1]]
    on_wall = np.unique(scene.faces[scene.label == 1])
    arrays: dict[str, Any] = {
        "meta/spacing": np.array(scene.spacing),
        "obs/xyz": index @ columns.T + scene.affine[:3, 3],
        "obs/phi": scene.field("/geometry/phi_mean")[inside] * scene.scale,
        "wall/xyz": scene.points[on_wall],
        "wall/normal": scene.field("/surface/vertex_normal")[on_wall],
        "wall/std": scene.field("/surface/vertex_std")[on_wall] * scene.scale,
        "wall/phi": np.zeros(len(on_wall)),
    }
    for label, name in scene.parts.items():
        if label > 1:
            arrays[f"openings/{name}/xyz"] = scene.points[
                np.unique(scene.faces[scene.label == label])
            ]
    facts = {"unit": scene.unit, "frame": "RAS+", "velocity": "m/s"}
    if "/velocity/u" in scene.prior.arrays:
        u, interval = scene.velocity(), float(scene.prior.attributes["/velocity"]["rr_s"])
        dt = (interval or 1.0) / len(u)
        facts["time"] = "s" if interval else "cycles"
        arrays["meta/dt"] = np.array([dt])
        arrays["obs/t"] = (np.arange(len(u)) * dt)[:, None]
        for part, name in enumerate("uvw"):
            arrays[f"obs/{name}"] = u[:, inside, part].T.astype(np.float32)
    return {".h5": _hdf5(arrays, facts)}


def npz(scene: Scene) -> Files:
    """Write magnitude, mask, level set and, where there is one, the mean velocity."""
    arrays: dict[str, Any] = {
        "magn": scene.field("/images/magnitude"),
        "mask": scene.field("/geometry/mask"),
        "level_set": scene.field("/geometry/phi_mean") * np.float32(scene.scale),
        "level_set_std": scene.field("/geometry/phi_std") * np.float32(scene.scale),
        "ijk_to_ras": scene.affine,
    }
    if "/velocity/u" in scene.prior.arrays:
        mean = scene.velocity().mean(axis=0)
        arrays |= {name: mean[..., n] for n, name in enumerate(("u_r", "u_p", "u_s"))}
    return {".npz": _npz(scene, arrays)}


def _shifted(step: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], ...]:
    """Return the views of an array and of its neighbours a step away."""
    here = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, shape, strict=True))
    there = tuple(slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, shape, strict=True))
    return here, there


def _npz(scene: Scene, arrays: dict[str, NDArray]) -> bytes:
    buffer = io.BytesIO()
    everything: dict[str, Any] = {"unit": np.array(scene.unit), "frame": np.array("RAS+"), **arrays}
    np.savez_compressed(buffer, **everything)
    return buffer.getvalue()


def _hdf5(arrays: dict[str, NDArray], facts: dict[str, str]) -> bytes:
    """Return an HDF5 file made in memory, plain and without clocks."""
    import h5py

    with h5py.File("export", "w", driver="core", backing_store=False) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=np.ascontiguousarray(array), track_times=False)
        file.attrs.update(facts)
        file.flush()
        return bytes(file.id.get_file_image())
