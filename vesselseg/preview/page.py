"""One picture of a prior: slices with the wall and its band, projection, 3-D view, convergence."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..fields import Volume
from ..grid import Grid
from ..meridian import Meridian, mirrored, whole_grid
from ..prior.revolved import on_axis
from .panels import (
    AMBER,
    FAINT,
    MILLIMETRE,
    NETWORK,
    PAGE,
    STYLE,
    WALL,
    Unit,
    caption,
    fine,
    frame,
    logit,
    outline,
    picture,
    ruler,
    scale_bar,
    window,
)
from .planes import Plane, deepest, planes
from .wall import camera, decimate, shade, sigma_map, vertex_normals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..prior.boundary import BoundaryPrior

Array = NDArray[Any]

ASSUMED = ("voxel size", "unit of length")  # parts of the readers' notes
UNKNOWN = ("no orientation", "orientation unknown")


@dataclass(frozen=True, eq=False)
class Mark:
    """An opening: its plane in the world, mm, and its flow out of the domain, ml/s, if known."""

    name: str
    centre: Array
    normal: Array
    radius: float
    flow: float | None


@dataclass(frozen=True, eq=False)
class Scene:
    """What the picture shows; lengths are mm, fields lie on ``grid`` in ``[k, j, i]``.

    Parameters
    ----------
    vertices : (n, 3) array
        Wall points in the world, mm; ``faces`` (m, 3), or edges (m, 2) in 2-D, index them.
    step_rms : (steps,) array
        Rms displacement of each refinement step, mm.
    """

    name: str
    grid: Grid
    phi: Array
    sigma: Array
    vertices: Array
    faces: Array
    vertex_sigma: Array
    image: Array | None = None
    probability: Array | None = None
    step_rms: Array = field(default_factory=lambda: np.zeros(0))
    evidence: str = "network"
    facts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    openings: tuple[Mark, ...] = ()

    @property
    def oriented(self) -> bool:
        """Whether the axes of the world are those of the patient."""
        return not any(word in note for note in self.notes for word in UNKNOWN)

    @property
    def unit(self) -> Unit:
        """What lengths are written in: the finest voxel where its size in mm was assumed."""
        assumed = any(word in note for note in self.notes for word in ASSUMED)
        return Unit("voxels", self.grid.h_min) if assumed else MILLIMETRE

    @property
    def size(self) -> str:
        """The extent in voxels, and what is known of a voxel's size."""
        grid = self.grid
        text = " × ".join(str(n) for n in grid.shape_kji[::-1]) + " voxels"
        sides = [s / self.unit.mm for s in grid.spacing_mm[::-1]]
        if self.unit == MILLIMETRE:
            return f"{text} of {' × '.join(f'{s:.3g}' for s in sides)} mm"
        cubic = grid.h_max <= 1.001 * grid.h_min
        return text if cubic else f"{text}, sides {' : '.join(f'{s:.3g}' for s in sides)}"


def preview(prior: BoundaryPrior, volume: Volume | None = None, *, dpi: int = 150) -> bytes:
    """Draw a prior, 2-D or 3-D.

    Parameters
    ----------
    prior : BoundaryPrior
    volume : Volume, optional
        The scan behind the slices; default: the magnitude stored in the prior.
    dpi : int
        Dots per inch of a page of 13.3 x 7.5 inches.

    Returns
    -------
    bytes
        A PNG file.
    """
    return draw(scene_of(prior, volume), dpi=dpi)


def scene_of(prior: BoundaryPrior, volume: Volume | None = None) -> Scene:
    """Take what the picture shows out of a prior, in mm.

    Raises
    ------
    DataError
        If a volume is given that is not on the prior's grid.
    """
    grid, arrays = prior.grid, prior.arrays
    if volume is not None and volume.grid.mismatch_mm(grid) > 1e-3 * grid.h_min:
        raise DataError("scan and prior lie on different grids", found=volume.grid.shape_kji)
    image = arrays.get("/images/magnitude") if volume is None else volume.values
    evidence = str(prior.attributes["/images/probability"]["source"])
    case_id = str(prior.attributes["/"]["case_id"])
    parts = int(prior.attributes["/geometry"]["n_components"])
    steps = prior.step_rms_mm
    ended = "converged" if prior.quality["converged"] else "not converged"
    facts = (
        f"{parts} component" + ("s" if parts > 1 else ""),
        f"{ended} after {len(steps)} steps",
    )
    scene = Scene(
        name=str(prior.provenance.get("input", {}).get("name", "")) or case_id,
        grid=grid,
        phi=prior.phi_mean_mm,
        sigma=prior.phi_std_mm,
        vertices=prior.vertices_mm,
        faces=np.asarray(prior.faces),
        vertex_sigma=prior.vertex_std_mm,
        image=image,
        probability=None if evidence == "derived" else arrays["/images/probability"],
        step_rms=steps,
        facts=facts,
        notes=prior.warnings,
        evidence=evidence,
        openings=_marks(prior),
    )
    return mirrored_scene(scene) if prior.axisymmetric else scene


def mirrored_scene(scene: Scene) -> Scene:
    """Return the whole plane of a half plane."""
    meridian = Meridian.of(scene.grid.affine)
    fields = {name: getattr(scene, name) for name in ("phi", "sigma", "image", "probability")}
    bounds = ~on_axis(scene.vertices, scene.faces, meridian)
    below = 2.0 * meridian.on_axis(scene.vertices) - scene.vertices
    edges = scene.faces[bounds]
    twice: dict[str, Any] = {name: None if f is None else mirrored(f) for name, f in fields.items()}
    return replace(
        scene,
        grid=whole_grid(scene.grid),
        vertices=np.concatenate([scene.vertices, below]),
        faces=np.concatenate([edges, edges[:, ::-1] + len(below)]),
        vertex_sigma=np.tile(scene.vertex_sigma, 2),
        **twice,
    )


def _marks(prior: BoundaryPrior) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            row["name"].decode(),
            row["centre_m"] * 1e3,
            row["normal_out"],
            float(row["radius_m"]) * 1e3,
            float(row["q_mean_m3s"]) * 1e6 if row["has_flow"] else None,
        )
        for row in prior.openings
    )


def draw(scene: Scene, *, dpi: int = 150) -> bytes:
    """Draw a scene as PNG bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13.333, 7.5))
        FigureCanvasAgg(figure)
        _title(figure, scene)
        if scene.grid.ndim == 3:
            _page_3d(figure, scene)
        else:
            _page_2d(figure, scene)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _title(figure: Figure, scene: Scene) -> None:
    figure.text(0.025, 0.955, scene.name, size=17, weight="bold", va="center")
    facts = "  ·  ".join((scene.size, *scene.facts))
    figure.text(0.025, 0.918, facts, size=10, color=FAINT, va="center")
    shown = [n for n in scene.notes if any(word in n for word in ASSUMED)]
    if shown:
        text = shown[0] if len(shown[0]) <= 90 else shown[0][:89] + "…"
        figure.text(0.975, 0.955, text, size=10.5, color=AMBER, va="center", ha="right")


def _page_3d(figure: Figure, scene: Scene) -> None:
    focus, radius = deepest(scene.phi, scene.grid)
    for column, plane in enumerate(planes(scene.grid, scene.oriented)):
        axes = figure.add_axes((0.025 + 0.3205 * column, 0.485, 0.309, 0.395))
        _slice(axes, scene, plane, focus, radius)
    _legend(figure, scene, 0.458)
    _projection(figure.add_axes((0.025, 0.035, 0.34, 0.36)), scene)
    _surface(figure, figure.add_axes((0.375, 0.035, 0.29, 0.36)), scene)
    _convergence(figure.add_axes((0.78, 0.095, 0.185, 0.3)), scene)


def _page_2d(figure: Figure, scene: Scene) -> None:
    _slice(
        figure.add_axes((0.025, 0.11, 0.575, 0.77)),
        scene,
        planes(scene.grid, scene.oriented)[0],
        None,
        0.0,
    )
    _legend(figure, scene, 0.06, centre=0.3125)
    _edges(figure, figure.add_axes((0.65, 0.53, 0.26, 0.34)), scene)
    _convergence(figure.add_axes((0.72, 0.095, 0.245, 0.33)), scene)


# --- slices ------------------------------------------------------------------------------------


def _slice(axes: Axes, scene: Scene, plane: Plane, focus: Array | None, radius: float) -> None:
    image = scene.image if scene.image is not None else -scene.phi
    low, high = np.percentile(image, (1.0, 99.8))
    step = plane.spacing(scene.grid)
    shown = plane.cut(image, focus)
    picture(axes, shown, step, low, high)
    phi, sigma = fine(plane.cut(scene.phi, focus)), fine(plane.cut(scene.sigma, focus), 1)
    up, right = ruler(shown.shape, phi.shape, step)
    band = phi / np.maximum(sigma, 1e-6)
    axes.contourf(right, up, band, [-2, 2], colors=[WALL], alpha=0.36)
    if scene.probability is not None:
        evidence = fine(logit(plane.cut(scene.probability, focus)))
        outline(axes, right, up, evidence, colors=NETWORK, linestyles="--", linewidths=1.3)
    outline(axes, right, up, phi, colors=WALL, linewidths=1.5)
    if scene.grid.ndim == 2:
        _draw_openings(axes, scene, plane)
    if focus is not None:
        window(axes, plane.place(scene.grid, focus), radius, step)
    frame(axes, plane)
    scale_bar(axes, scene.unit)


def _legend(figure: Figure, scene: Scene, y: float, centre: float = 0.5) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=WALL, lw=1.8, label="refined wall"),
        Patch(facecolor=WALL, alpha=0.4, label="± 2 s.d."),
    ]
    if scene.probability is not None:
        label = scene.evidence if scene.evidence in ("network", "start") else "evidence"
        handles.insert(0, Line2D([], [], color=NETWORK, ls="--", lw=1.4, label=label))
    figure.legend(
        handles=handles,
        loc="center",
        bbox_to_anchor=(centre, y),
        ncols=3,
        frameon=False,
        fontsize=10,
    )


# --- projection, wall, convergence -------------------------------------------------------------


def _projection(axes: Axes, scene: Scene) -> None:
    plane = planes(scene.grid, scene.oriented)[1]
    image = scene.image if scene.image is not None else -scene.phi
    flat = plane.turn(image.max(axis=plane.normal))
    low, high = np.percentile(flat, (2.0, 99.8))
    step = plane.spacing(scene.grid)
    picture(axes, flat, step, low, high)
    phi = fine(plane.turn(scene.phi.min(axis=plane.normal)))
    up, right = ruler(flat.shape, phi.shape, step)
    outline(axes, right, up, phi, colors=WALL, linewidths=1.0)
    axes.set_anchor("N")
    _draw_openings(axes, scene, plane)
    frame(axes, plane)
    scale_bar(axes, scene.unit)
    flowing = any(mark.flow is not None for mark in scene.openings)
    more = ", openings and flow in ml/s" if flowing else ", openings" if scene.openings else ""
    caption(axes, "maximum-intensity projection" + more)


def _draw_openings(axes: Axes, scene: Scene, plane: Plane) -> None:
    """Draw every opening from the side, with an arrow along its flow."""
    for mark in scene.openings:
        inner, outer = (
            np.array(plane.place(scene.grid, scene.grid.index(mark.centre + way * mark.normal)))
            for way in (-mark.radius, mark.radius)
        )
        middle, along = (inner + outer) / 2, (outer - inner) / 2
        length = float(np.hypot(*along))
        if length > 0.05 * mark.radius:  # seen from the side, as far as it is
            side = np.array([-along[1], along[0]]) / length * mark.radius
            axes.plot(*np.transpose([middle - side, middle + side]), color=AMBER, lw=1.6)
        if mark.flow is not None and length > 0.05 * mark.radius:
            ends = within(axes, (inner, outer) if mark.flow > 0 else (outer, inner))
            style = {"arrowstyle": "-|>", "color": AMBER, "lw": 1.4}
            axes.annotate("", tuple(ends[1]), tuple(ends[0]), arrowprops=style)
        value = "" if mark.flow is None else f" {abs(mark.flow):.1f}"
        place = middle - 1.3 * along  # inward, so that it stays in the picture
        label = mark.name.replace("_", " ") + value
        text = axes.text(float(place[0]), float(place[1]), label, color=AMBER, size=8)
        text.set(ha="center", va="center", clip_on=True)
        text.set_bbox({"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.2})


def within(axes: Axes, ends: tuple[NDArray[Any], NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """Slide an arrow back along itself until its tip lies in the picture: else none is drawn."""
    tail, tip = ends
    low, high = np.sort(np.array([axes.get_xlim(), axes.get_ylim()]), axis=1).T
    beyond = tip - np.clip(tip, low, high)
    way = tip - tail
    share = float(np.max(beyond / np.where(beyond == 0.0, 1.0, way)))
    return tail - share * way, tip - share * way


def _surface(figure: Figure, axes: Axes, scene: Scene) -> None:
    """Shade the wall by a key light and colour it by its standard deviation."""
    from matplotlib.collections import TriMesh
    from matplotlib.colors import to_rgb
    from matplotlib.tri import Triangulation

    vertices, faces, sigma = decimate(scene.vertices, scene.faces, scene.vertex_sigma)
    corners = (vertices - vertices.mean(axis=0)) @ camera().T
    norm = _sigma_norm(scene)
    colours = shade(sigma_map()(norm(sigma / scene.unit.mm))[:, :3], vertex_normals(corners, faces))
    depth = corners[:, 2]
    fog = 0.35 * (depth.max() - depth[:, None]) / max(float(np.ptp(depth)), 1e-9)
    colours = colours * (1 - fog) + np.array(to_rgb(PAGE)) * fog
    sides = corners[faces][:, 1:] - corners[faces][:, :1]
    visible = np.cross(sides[:, 0], sides[:, 1])[:, 2] > 0
    shown = faces[visible]
    shown = shown[np.argsort(depth[shown].mean(axis=1))]  # far ones first
    mesh = TriMesh(Triangulation(corners[:, 0], corners[:, 1], shown))
    mesh.set_facecolor(list(colours))
    axes.add_collection(mesh)
    _fit(axes, corners[:, :2])
    caption(axes, "wall, coloured by its standard deviation")
    _colour_bar(figure, axes, norm, scene.unit)


def _sigma_norm(scene: Scene) -> Any:
    """Return the range of the colours, in the unit of the scene."""
    from matplotlib.colors import Normalize

    sigma = scene.vertex_sigma / scene.unit.mm
    low, high = np.percentile(sigma, (2.0, 98.0)) if len(sigma) else (0.0, 1.0)
    middle = (low + high) / 2
    half = max((high - low) / 2, 0.15 * middle, 1e-6)  # a constant s.d. must not look varied
    return Normalize(float(middle - half), float(middle + half), clip=True)


def _fit(axes: Axes, points: Array, margin: float = 0.04) -> None:
    low, high = points.min(axis=0), points.max(axis=0)
    pad = margin * float((high - low).max())
    axes.set_xlim(low[0] - pad, high[0] + pad)
    axes.set_ylim(low[1] - pad, high[1] + pad)
    axes.set_aspect("equal")
    axes.set_anchor("N")
    axes.axis("off")


def _colour_bar(figure: Figure, axes: Axes, norm: Any, unit: Unit) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    inset = axes.inset_axes((1.03, 0.1, 0.028, 0.78))
    bar = figure.colorbar(ScalarMappable(norm, sigma_map()), cax=inset)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.locator = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar.update_ticks()
    bar.ax.tick_params(labelsize=8.5, length=2)
    bar.ax.set_title(unit.name, size=8.5, color=FAINT, pad=5)


def _edges(figure: Figure, axes: Axes, scene: Scene) -> None:
    """Draw the wall of a 2-D prior as a line coloured by its standard deviation."""
    from matplotlib.collections import LineCollection

    plane = planes(scene.grid, scene.oriented)[0]
    index = scene.grid.index(scene.vertices)
    points = np.array([plane.place(scene.grid, point) for point in index])
    norm = _sigma_norm(scene)
    lines = LineCollection(list(points[scene.faces]), norm=norm, cmap=sigma_map(), linewidths=2.6)
    lines.set_array(scene.vertex_sigma[scene.faces].mean(axis=1) / scene.unit.mm)
    axes.add_collection(lines)
    _fit(axes, points)
    caption(axes, "wall, coloured by its standard deviation")
    _colour_bar(figure, axes, norm, scene.unit)


def _convergence(axes: Axes, scene: Scene) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    axes.set_facecolor(PAGE)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    rms = scene.step_rms[scene.step_rms > 0] / scene.unit.mm
    if len(rms):
        steps = np.arange(1, len(rms) + 1)
        axes.plot(steps, rms, color=WALL, lw=1.8, marker="o", ms=4, mec=PAGE, mew=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.grid(axis="y", color=FAINT, alpha=0.18, lw=0.6)
    else:
        axes.text(0.5, 0.5, "no steps recorded", transform=axes.transAxes, ha="center", color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(which="both", labelsize=9, length=3)
    axes.set_xlabel("refinement step", size=9.5)
    axes.set_ylabel(f"rms displacement, {scene.unit.name}", size=9.5)
    caption(axes, "convergence")
