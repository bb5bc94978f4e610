"""What ``vesselseg info`` prints of a prior: one page for a person."""

from __future__ import annotations

from typing import Any

import numpy as np

from .boundary import METRE_PER_MM, BoundaryPrior

WIDTH = 14
ML_PER_M3 = 1e6


def page(prior: BoundaryPrior) -> list[str]:
    """Return the lines of the page; every length in mm, every flow in ml/s."""
    root, lumen = prior.attributes["/"], prior.attributes["/geometry"]
    quality = prior.quality
    flat = prior.phi_mean_m.ndim == 2 and not prior.axisymmetric
    name = prior.provenance.get("input", {}).get("name") or root["case_id"]
    lines = [f"{name}  ({root['geometry_kind']}, {root['writer']})", ""]

    def line(title: str, text: str) -> None:
        lines.append(f"  {title:<{WIDTH}} {text}")

    grid = prior.grid
    size = " x ".join(str(n) for n in grid.shape_kji[::-1])
    steps = " x ".join(f"{s:.3g}" for s in grid.spacing_mm[::-1])
    line("grid", f"{size} voxels of {steps} mm")
    if prior.axisymmetric:
        facts = prior.attributes["/grid"]
        at = ", ".join(_mm(x) for x in facts["axis_origin_m"])
        way = ", ".join(f"{x:.3g}" for x in facts["axis_direction"])
        line("axis", f"through ({at}) mm along ({way}), fields on the half plane")
    pieces, genus = int(lumen["n_components"]), int(lumen["genus"])
    volume = float(lumen["volume_m3"])
    held = f"{volume * 1e6:.4g} mm² in the plane" if flat else f"{volume * ML_PER_M3:.4g} ml"
    parts = f"{pieces} piece{'s' if pieces > 1 else ''}, {genus} handle{'s' if genus != 1 else ''}"
    line("lumen", f"{held}, {parts}, largest radius {_mm(lumen['max_radius_m'])} mm")
    std = prior.phi_std_m if not len(prior.vertex_std_m) else prior.vertex_std_m
    calibrated = prior.attributes["/geometry/phi_std"]["calibrated"]
    known = "calibrated" if calibrated else "not calibrated"
    line(
        "wall",
        f"s.d. {_mm(np.median(std))} mm ({known}), contrast {quality['wall_snr']:.1f} noises",
    )
    field = prior.attributes["/geometry/covariance"]
    line("covariance", f"length {_mm(field['ell_m'])} mm, order {int(field['m'])}")
    lines += _axis(prior) + _openings(prior, flat) + _velocity(prior)
    lines.append("")
    ended = "converged" if quality["converged"] else "did not converge"
    line("refinement", f"{ended} after {len(prior.step_rms_mm)} steps")
    line("evidence", str(prior.attributes["/images/probability"]["source"]))
    line("content", f"sha256 {str(root['content_sha256'])[:16]}…")
    lines += [f"  {'note' if n == 0 else '':<{WIDTH}} {w}" for n, w in enumerate(prior.warnings)]
    return lines


def _mm(length_m: Any) -> str:
    return f"{float(length_m) / METRE_PER_MM:.3g}"


def _axis(prior: BoundaryPrior) -> list[str]:
    facts = prior.attributes.get("/centerline", {})
    if "n_branches" not in facts:
        return []
    counts = {k: int(facts[f"n_{k}"]) for k in ("branches", "ends", "junctions", "loops")}
    text = ", ".join(f"{n} {word if n != 1 else _single(word)}" for word, n in counts.items())
    return [f"  {'centreline':<{WIDTH}} {text}"]


def _single(word: str) -> str:
    return {"branches": "branch"}.get(word, word.removesuffix("s"))


def _openings(prior: BoundaryPrior, flat: bool) -> list[str]:
    """Return a table of the openings."""
    if not len(prior.openings):
        return []
    head = "width mm" if flat else "area mm²"
    unit, scale = ("mm²/s", 1e6) if flat else ("ml/s", ML_PER_M3)
    lines = [
        "",
        f"  {'opening':<{WIDTH}} {'centre mm (R, A, S)':<26}{head:>16}{'flow ' + unit:>18}",
    ]
    for row in prior.openings:
        centre = ", ".join(f"{x / METRE_PER_MM:.1f}" for x in row["centre_m"])
        power = METRE_PER_MM if flat else METRE_PER_MM**2
        area = f"{row['area_m2'] / power:.1f} ± {row['area_std_m2'] / power:.1f}"
        flow = f"{row['q_mean_m3s'] * scale:+.2f} ± {row['q_std_m3s'] * scale:.2f}"
        shown = flow if row["has_flow"] else "not measured"
        lines.append(f"  {row['name'].decode():<{WIDTH}} {centre:<26}{area:>16}{shown:>18}")
    if (prior.openings["has_flow"] != 0).sum() > 1:
        total, spread = (prior.quality[f"mass_balance{s}"] * scale for s in ("", "_sigma"))
        lines.append(f"  {'balance':<{WIDTH}} {'':<26}{'':>16}{f'{total:+.2f} ± {spread:.2f}':>18}")
    return lines


def _velocity(prior: BoundaryPrior) -> list[str]:
    if "/velocity/u" not in prior.arrays:
        return []
    facts, u = prior.attributes["/velocity"], prior.arrays["/velocity/u"]
    inside = prior.phi_mean_m < 0
    noise = float(np.median(prior.arrays["/velocity/sigma_u"][inside]))
    steps = {"unwrapped": "unwrapped", "background_corrected": "background subtracted"}
    done = [word for key, word in steps.items() if facts[key]]
    frames = f"{len(u)} frame{'s' if len(u) > 1 else ''}"
    venc = max(float(v) for v in facts["venc_ms"])
    words = [frames, f"venc {venc:.3g} m/s", f"noise {noise:.2g} m/s", *done]
    lines = ["", f"  {'velocity':<{WIDTH}} {', '.join(words)}"]
    if fluid := prior.attributes.get("/physics"):
        nu, spread = (1e6 * float(fluid[n]) for n in ("nu_mean", "nu_std"))
        where = " at high shear" if fluid["model"] == "carreau" else ""
        text = f"{fluid['model']}, viscosity{where} {nu:.3g} ± {spread:.2g} mm²/s"
        lines.append(f"  {'fluid':<{WIDTH}} {text}")
    return lines
