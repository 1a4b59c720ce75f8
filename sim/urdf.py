"""Writes the objects, the fixtures and a light Panda as URDF and OBJ files, the one format PyBullet reads in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pybullet_data

from sim.objects import Collider, FixtureSpec, Mesh, ObjectSpec


def write_body(spec: ObjectSpec | FixtureSpec, folder: Path) -> Path:
    """`<name>.urdf` in `folder`, with an OBJ per coloured part and per convex hull; returns its path."""
    visuals, collisions = [], []
    for number, part in enumerate(spec.parts):
        mesh = _write_obj(part.mesh, folder / f"{spec.name}-{number}.obj")
        red, green, blue = part.colour
        visuals.append(
            f'<visual><geometry><mesh filename="{mesh}"/></geometry>'
            f'<material name="{spec.name}-{number}"><color rgba="{red} {green} {blue} 1"/></material></visual>'
        )
    for number, collider in enumerate(spec.colliders):
        collisions.append(_collision(collider, folder / f"{spec.name}-hull-{number}.obj"))
    low, high = _bounds(spec)
    x, y, z = (high - low) ** 2 * spec.mass_kg / 12  # the inertia of a box of the same size
    path = folder / f"{spec.name}.urdf"
    path.write_text(
        f'<robot name="{spec.name}"><link name="body"><inertial><mass value="{spec.mass_kg}"/>'
        f'<inertia ixx="{y + z:.8f}" iyy="{x + z:.8f}" izz="{x + y:.8f}" ixy="0" ixz="0" iyz="0"/></inertial>'
        + "".join(visuals + collisions)
        + "</link></robot>"
    )
    return path


def write_panda(folder: Path) -> Path:
    """PyBullet's Panda with its collision meshes as visuals: 4 thousand triangles to draw instead of 100."""
    source = Path(pybullet_data.getDataPath()) / "franka_panda"
    text = (source / "panda.urdf").read_text()
    for name in [f"link{number}" for number in range(8)] + ["hand"]:
        text = text.replace(f"meshes/visual/{name}.obj", f"meshes/collision/{name}.obj")
    path = folder / "panda.urdf"
    path.write_text(text.replace("package://meshes", str(source / "meshes")))
    return path


def _bounds(spec: ObjectSpec | FixtureSpec) -> tuple[np.ndarray, np.ndarray]:
    points = np.concatenate([part.mesh.vertices for part in spec.parts])
    return points.min(axis=0), points.max(axis=0)


def _collision(collider: Collider, hull_path: Path) -> str:
    sizes = " ".join(str(v) for v in collider.size)
    if collider.points is not None:
        _write_obj(Mesh(collider.points, np.ones((1, 3)), np.arange(len(collider.points)).reshape(-1, 3)), hull_path)
        shape = f'<mesh filename="{hull_path}"/>'
    elif collider.kind == "box":
        shape = f'<box size="{sizes}"/>'
    else:
        shape = f'<{collider.kind} radius="{collider.size[0]}" length="{collider.size[1]}"/>'
    origin = f'<origin xyz="{" ".join(map(str, collider.centre))}" rpy="{" ".join(map(str, collider.euler))}"/>'
    return f"<collision>{origin}<geometry>{shape}</geometry></collision>"


def _write_obj(mesh: Mesh, path: Path) -> Path:
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices]
    lines += [f"vn {x:.5f} {y:.5f} {z:.5f}" for x, y, z in mesh.normals]
    own = len(mesh.normals) == len(mesh.vertices)
    lines += ["f " + " ".join(f"{v + 1}//{v + 1 if own else 1}" for v in face) for face in mesh.faces]
    path.write_text("\n".join(lines) + "\n")
    return path
