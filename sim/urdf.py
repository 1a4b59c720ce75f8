"""Writes objects, fixtures and a simplified Panda as URDF and OBJ files, the only format PyBullet reads completely."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pybullet_data
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from sim.bodies import BodySpec, Collider
from sim.meshes import Mesh


def write_body(spec: BodySpec, folder: Path, visible: bool) -> Path:
    """Writes `<name>.urdf`, with an OBJ file per convex hull and, if `visible` (for TinyRenderer), per part."""
    shapes = []
    for number, mesh in enumerate(spec.parts if visible else ()):
        path = _write_obj(mesh, folder / f"{spec.name}-{number}.obj")
        shapes.append(f'<visual><geometry><mesh filename="{path}"/></geometry></visual>')
    for number, collider in enumerate(spec.colliders):
        shapes.append(_collision(collider, folder / f"{spec.name}-hull-{number}.obj"))
    path = folder / f"{spec.name}.urdf"
    path.write_text(
        f'<robot name="{spec.name}"><link name="body"><inertial><mass value="{spec.mass_kg}"/>'
        '<inertia ixx="1" iyy="1" izz="1" ixy="0" ixz="0" iyz="0"/></inertial>'  # sim/world.py sets it
        + "".join(shapes)
        + "</link></robot>",
        encoding="utf-8",
    )
    return path


def write_panda(folder: Path, visible: bool) -> Path:
    """Writes PyBullet's Panda with convex hulls as colliders, which load faster than its meshes. If `visible`, its
    visual shapes are the collision meshes: 4 thousand triangles instead of 100 thousand."""
    source = Path(pybullet_data.getDataPath()) / "franka_panda"
    text = (source / "panda.urdf").read_text(encoding="utf-8").replace("package://meshes", str(source / "meshes"))
    for name in [f"link{number}" for number in range(8)] + ["hand"]:
        text = text.replace(f"meshes/visual/{name}.obj", f"meshes/collision/{name}.obj")

    def with_hull(collision: re.Match[str]) -> str:
        mesh = Path(collision[1])
        hull = _write_hull(read_obj(mesh)[0], folder / f"panda-{mesh.stem}.obj")
        return collision[0].replace(collision[1], str(hull))

    text = re.sub(r'<collision>.*?filename="([^"]+)".*?</collision>', with_hull, text, flags=re.DOTALL)
    if not visible:
        text = re.sub(r"<visual>.*?</visual>", "", text, flags=re.DOTALL)
    path = folder / ("panda-visible.urdf" if visible else "panda.urdf")
    path.write_text(text, encoding="utf-8")
    return path


def read_obj(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reads the vertices [V, 3] and triangles [F, 3] of an OBJ file."""
    vertices, faces = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, *values = line.split() or [""]
        if kind == "v":
            vertices.append([float(v) for v in values[:3]])
        elif kind == "f":
            corner = [int(v.split("/")[0]) - 1 for v in values]
            faces += [(corner[0], corner[k], corner[k + 1]) for k in range(1, len(corner) - 1)]
    return np.array(vertices), np.array(faces)


def _collision(collider: Collider, hull_path: Path) -> str:
    sizes = " ".join(str(v) for v in collider.size)
    if collider.points is not None:
        shape = f'<mesh filename="{_write_hull(collider.points, hull_path)}"/>'
    elif collider.kind == "box":
        shape = f'<box size="{sizes}"/>'
    else:
        shape = f'<{collider.kind} radius="{collider.size[0]}" length="{collider.size[1]}"/>'
    origin = f'<origin xyz="{" ".join(map(str, collider.centre))}" rpy="{" ".join(map(str, collider.euler))}"/>'
    return f"<collision>{origin}<geometry>{shape}</geometry></collision>"


def _write_hull(points: NDArray[np.float64], path: Path) -> Path:
    hull = ConvexHull(points)
    lines = ["v {:.6f} {:.6f} {:.6f}".format(*points[corner]) for corner in hull.vertices]
    number = {int(corner): k + 1 for k, corner in enumerate(hull.vertices)}
    lines += ["f {} {} {}".format(*(number[int(corner)] for corner in face)) for face in hull.simplices]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _write_obj(mesh: Mesh, path: Path) -> Path:
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.normals]
    lines += [f"vt {u:.5f} {v:.5f}" for u, v in mesh.uv]
    corners = [f"{k}/{k}/{k}" for k in range(1, len(mesh.vertices) + 1)]
    lines += ["f " + " ".join(corners[k : k + 3]) for k in range(0, len(corners), 3)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
