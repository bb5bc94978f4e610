"""Surfaces: STL, VTK PolyData, Gmsh, and the inputs of solvers that begin with one."""

from __future__ import annotations

import base64
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from .scene import WALL, Scene

Files = dict[str, bytes]  # suffix of the name to content

RELAXATION = 0.8  # time of lattice-Boltzmann steps: near the middle of its stable range
VISCOSITY = 3.3e-6  # m²/s, of blood, where the prior states none


def stl(scene: Scene) -> Files:
    """Write the closed surface, and each of its parts alone, as binary STL."""
    parts = {
        f"_{name}.stl": binary_stl(scene, scene.label == label)
        for label, name in scene.parts.items()
    }
    return {".stl": binary_stl(scene, np.ones(len(scene.faces), dtype=bool)), **parts}


def binary_stl(scene: Scene, chosen: NDArray[np.bool_]) -> bytes:
    """Return the chosen faces; the label of each is its attribute."""
    corners = scene.points[scene.faces[chosen]]
    record = np.dtype([("normal", "<f4", 3), ("corner", "<f4", (3, 3)), ("attribute", "<u2")])
    out = np.zeros(len(corners), dtype=record)
    out["normal"], out["corner"] = _normals(corners), corners
    out["attribute"] = scene.label[chosen]
    header = f"vesselseg {scene.name[:32]}, RAS+ {scene.unit}".encode("ascii", "replace")
    return header.ljust(80, b" ") + np.uint32(len(out)).tobytes() + out.tobytes()


def openfoam(scene: Scene) -> Files:
    """Write ASCII STL of one solid a part, and a dictionary for snappyHexMesh."""
    lines = []
    for label, name in scene.parts.items():
        corners = scene.points[scene.faces[scene.label == label]]
        lines.append(f"solid {name}")
        for normal, face in zip(_normals(corners), corners, strict=True):
            lines.append(f"facet normal {_row(normal)}\nouter loop")
            lines += [f"vertex {_row(corner)}" for corner in face]
            lines.append("endloop\nendfacet")
        lines.append(f"endsolid {name}")
    regions = "\n".join(f"            {n} {{ name {n}; }}" for n in scene.parts.values())
    kinds = {row["name"]: "patch" for row in scene.openings} | {"wall": "wall", "closure": "patch"}
    surfaces = "\n".join(
        f"                {n} {{ level (0 0); patchInfo {{ type {kinds[n]}; }} }}"
        for n in scene.parts.values()
    )
    text = f"""// Parts of snappyHexMeshDict: RAS+ {scene.unit}
geometry
{{
    {scene.name}.stl
    {{
        type triSurfaceMesh;
        name lumen;
        regions
        {{
{regions}
        }}
    }}
}}
castellatedMeshControls
{{
    refinementSurfaces
    {{
        lumen
        {{
            level (0 0);
            regions
            {{
{surfaces}
            }}
        }}
    }}
    locationInMesh ({_row(scene.interior)});
}}
"""
    return {".stl": ("\n".join(lines) + "\n").encode(), ".snappy": text.encode()}


def vtp(scene: Scene) -> Files:
    """Write VTK XML PolyData with labels, normals, standard deviation and curvature."""
    return {".vtp": polydata(scene, {"label": scene.label})}


def simvascular(scene: Scene) -> Files:
    """Write PolyData with ModelFaceID, 1 for the wall, and the table of faces beside it."""
    ids = {label: number for number, label in enumerate(scene.parts, start=1)}
    face_id = np.array([ids[int(label)] for label in scene.label], dtype=np.int32)
    rows = "\n".join(
        f'      <face id="{ids[label]}" name={quoteattr(name)} '
        f'type="{"wall" if label == WALL else "cap"}" visible="true"/>'
        for label, name in scene.parts.items()
    )
    text = f"""<?xml version="1.0" encoding="UTF-8"?>
<model type="PolyData">
 <timestep id="0">
  <model_element type="PolyData" num_sampling="0">
   <faces>
{rows}
   </faces>
  </model_element>
 </timestep>
</model>
"""
    return {".vtp": polydata(scene, {"ModelFaceID": face_id}), ".mdl": text.encode()}


def polydata(scene: Scene, cells: dict[str, NDArray]) -> bytes:
    """Return a VTK XML file; its field data state unit, frame and the names of the labels."""
    size, count = scene.faces.shape[1], len(scene.faces)
    surface = {n: scene.field(f"/surface/vertex_{n}") for n in ("normal", "std", "curvature")}
    point_data = _arrays(
        {
            "normal": surface["normal"],
            "std": (surface["std"] * scene.scale).astype(np.float32),
            "curvature": (surface["curvature"] / scene.scale).astype(np.float32),
        }
    )
    names = " ".join(f"{label}:{name}" for label, name in scene.parts.items())
    texts = "".join(
        f'<Array type="String" Name="{key}" NumberOfTuples="1" format="ascii">'
        + " ".join(str(byte) for byte in value.encode())
        + " 0</Array>"
        for key, value in {"unit": scene.unit, "frame": "RAS+", "labels": names}.items()
    )
    topology = _arrays(
        {
            "connectivity": scene.faces.ravel().astype(np.int64),
            "offsets": (np.arange(count, dtype=np.int64) + 1) * size,
        }
    )
    kind, number = ("Polys", "NumberOfPolys") if size == 3 else ("Lines", "NumberOfLines")
    text = (
        '<?xml version="1.0"?>\n<VTKFile type="PolyData" version="1.0" '
        'byte_order="LittleEndian" header_type="UInt64">\n<PolyData>\n'
        f"<FieldData>{texts}</FieldData>\n"
        f'<Piece NumberOfPoints="{len(scene.points)}" {number}="{count}">\n'
        f'<PointData Normals="normal">{point_data}</PointData>\n'
        f"<CellData>{_arrays(cells)}</CellData>\n"
        f"<Points>{_arrays({'points': scene.points})}</Points>\n"
        f"<{kind}>{topology}</{kind}>\n</Piece>\n</PolyData>\n</VTKFile>\n"
    )
    return text.encode()


def gmsh(scene: Scene) -> Files:
    """Write the labelled surface as Gmsh 2.2 with a physical group a part.

    What is not joined are surfaces of their own in a group, so that each piece of the lumen can be
    given its volume.
    """
    tags = {label: number for number, label in enumerate(scene.parts, start=1)}
    names = [f'2 {tags[label]} "{name}"' for label, name in scene.parts.items()]
    group = np.array([tags[int(label)] for label in scene.label])
    piece = pieces(scene.faces, len(scene.points))
    _, surface = np.unique(np.stack([group, piece]), axis=1, return_inverse=True)
    nodes = [f"{n} {_row(point)}" for n, point in enumerate(scene.points, start=1)]
    elements = [
        f"{n} 2 2 {named} {entity} {a} {b} {c}"
        for n, (named, entity, (a, b, c)) in enumerate(
            zip(group, surface + 1, (scene.faces + 1).tolist(), strict=True), start=1
        )
    ]
    blocks = {"PhysicalNames": names, "Nodes": nodes, "Elements": elements}
    text = f"$MeshFormat\n2.2 0 8\n$EndMeshFormat\n$Comments\nRAS+ {scene.unit}\n$EndComments\n"
    for name, rows in blocks.items():
        text += f"${name}\n{len(rows)}\n" + "\n".join(rows) + f"\n$End{name}\n"
    return {".msh": text.encode()}


def pieces(faces: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """Return the number of the joined piece that each face belongs to, of ``count`` corners."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_array((np.ones(len(ends), dtype=bool), tuple(ends.T)), shape=(count, count))
    found: NDArray[np.int32] = connected_components(links, directed=False)[1]
    return found[faces[:, 0]]


def hemelb(scene: Scene) -> Files:
    """Write the wall as STL and the profile of the geometry tool, normals into the lumen."""
    h = min(scene.spacing)
    viscosity = float(scene.prior.attributes.get("/physics", {}).get("nu_mean", VISCOSITY))
    step = (RELAXATION - 0.5) / 3.0 * (h / scene.scale) ** 2 / viscosity
    lines = [f"# RAS+ {scene.unit}", "DurationSeconds: 1.0", "Iolets:"]
    for row in scene.openings:
        lines += [
            f"- Centre: {_xyz(row['centre'])}",
            f"  Name: {row['name']}",
            f"  Normal: {_xyz([-n for n in row['normal_out']])}",
            "  Pressure: {x: 0.0, y: 0.0, z: 0.0}",
            f"  Radius: {row['radius']:.9g}",
            f"  Type: {'Inlet' if row['kind'] == 'inlet' else 'Outlet'}",
        ]
    if not scene.openings:
        lines[-1] = "Iolets: []"
    lines += [
        f"SeedPoint: {_xyz(scene.interior)}",
        f"StlFile: {scene.name}.stl",
        f"StlFileUnitId: {0 if scene.unit == 'm' else 1}",
        f"TimeStepSeconds: {step:.9g}",
        f"VoxelSize: {h:.9g}",
    ]
    every = np.ones(len(scene.faces), dtype=bool)
    return {".stl": binary_stl(scene, every), ".pr2": ("\n".join(lines) + "\n").encode()}


def palabos(scene: Scene) -> Files:
    """Write the surface as STL and the openings in order as param.xml."""
    rows = "\n".join(
        f'    <opening order="{n}" name={quoteattr(row["name"])} type="{row["kind"]}">\n'
        f"      <centre> {_row(row['centre'])} </centre>\n"
        f"      <normalIntoLumen> {_row([-x for x in row['normal_out']])} </normalIntoLumen>\n"
        f"      <radius> {row['radius']:.9g} </radius>\n    </opening>"
        for n, row in enumerate(scene.openings)
    )
    text = f"""<?xml version="1.0" ?>
<!-- RAS+ {scene.unit} -->
<geometry>
  <mesh> {scene.name}.stl </mesh>
  <pointInLumen> {_row(scene.interior)} </pointInLumen>
  <voxel> {min(scene.spacing):.9g} </voxel>
  <openings>
{rows}
  </openings>
</geometry>
"""
    return {**stl(scene), "_param.xml": text.encode()}


def _normals(corners: NDArray) -> NDArray[np.float64]:
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300))


def _row(values: NDArray | list[float]) -> str:
    return " ".join(f"{float(v):.9g}" for v in values)


def _xyz(values: NDArray | list[float]) -> str:
    return "{" + ", ".join(f"{a}: {float(v):.9g}" for a, v in zip("xyz", values, strict=True)) + "}"


def _arrays(named: dict[str, NDArray]) -> str:
    """Render arrays as inline base64 of VTK XML."""
    types = {"float32": "Float32", "float64": "Float64", "int32": "Int32", "int64": "Int64"}
    types["uint8"] = "UInt8"
    text = ""
    for name, array in named.items():
        data = np.ascontiguousarray(array).tobytes()
        body = base64.b64encode(np.uint64(len(data)).tobytes() + data).decode()
        parts = f' NumberOfComponents="{array.shape[1]}"' if array.ndim == 2 else ""
        kind = types[str(array.dtype)]
        text += f'<DataArray type="{kind}" Name="{name}"{parts} format="binary">{body}</DataArray>'
    return text
