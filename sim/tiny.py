"""PyBullet's TinyRenderer, a CPU fallback without dependencies: same bodies, materials and camera as sim/opengl.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.appearances import TABLES, texture
from sim.bullet import pybullet
from sim.drawing import TABLE, Geometry, RenderBody, segment_of
from sim.scenes import Scene

SPECULAR = 0.05


class TinyRenderer:
    """Renders the visual shapes of one PyBullet client. Call `set_appearance` once per scene."""

    def __init__(self, client: int, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._files: dict[Any, str] = {}  # texture image of a material or a table -> file

    def set_appearance(self, scene: Scene, bodies: list[RenderBody]) -> None:
        camera, light = scene.camera, scene.light
        self._scene, self._bodies = scene, bodies
        ambient, diffuse = float(np.mean(light.ambient)), max(light.colour)
        fit = min(1.0, 0.95 / (ambient + diffuse + SPECULAR))  # colours beyond white would be distorted
        self._options = {
            "viewMatrix": camera.view_matrix().T.ravel().tolist(),
            "lightDirection": light.direction,
            "lightColor": tuple(np.array(light.colour) / max(light.colour)),
            "lightDistance": 2.0,
            "lightAmbientCoeff": fit * ambient,
            "lightDiffuseCoeff": fit * diffuse,
            "lightSpecularCoeff": fit * SPECULAR,
            "renderer": pybullet.ER_TINY_RENDERER,
            "physicsClientId": self._client,
        }
        for body in bodies:
            if body.name == TABLE:
                number = scene.table_appearance
                table = self._texture((scene.split, number), TABLES[scene.split][number])
                self._set_material(body, 0, table, scene.table_tint)
            if body.segment == "robot":
                colour = [*body.materials[0].colour, 1.0]
                pybullet.changeVisualShape(body.uid, body.link, rgbaColor=colour, physicsClientId=self._client)
                continue
            for part, material in enumerate(body.materials):
                painted = self._texture(material, lambda material=material: texture(material))
                self._set_material(body, part, painted, body.tint)

    def _set_material(self, body: RenderBody, part: int, texture_id: int, tint: tuple[float, ...]) -> None:
        pybullet.changeVisualShape(
            body.uid,
            body.link,
            shapeIndex=part,
            textureUniqueId=texture_id,
            rgbaColor=[*(min(v, 1.0) for v in tint), 1.0],
            specularColor=[0, 0, 0],
            physicsClientId=self._client,
        )

    def _texture(self, key: Any, make: Any) -> int:
        if key not in self._files:
            from PIL import Image

            self._files[key] = str(self._folder / f"texture-{len(self._files)}.png")
            Image.fromarray(make()).save(self._files[key])
        return pybullet.loadTexture(self._files[key], physicsClientId=self._client)

    def render(self, size: int, poses: list[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """Renders an image, uint8 [size, size, 3]. Ignores `poses`: PyBullet uses those of the client."""
        flags = pybullet.ER_NO_SEGMENTATION_MASK
        rgba = pybullet.getCameraImage(
            size, size, shadow=1, flags=flags, projectionMatrix=self._projection(size), **self._options
        )[2]
        return np.ascontiguousarray(np.asarray(rgba, np.uint8).reshape(size, size, 4)[..., :3])

    def geometry(self, size: int, poses: list[NDArray[np.float64]]) -> Geometry:
        """Renders depth and segmentation."""
        _, _, _, depth, owner = pybullet.getCameraImage(
            size, size, shadow=0, projectionMatrix=self._projection(size), **self._options
        )
        segments = np.zeros((size, size), np.uint8)
        for uid, value in {body.uid: segment_of(body) for body in self._bodies}.items():
            segments[np.reshape(owner, (size, size)) == uid] = value
        return Geometry.from_buffer(np.reshape(depth, (size, size)), segments, self._scene.camera)

    def _projection(self, size: int) -> list[float]:
        """The projection matrix, shifted by half a pixel: TinyRenderer samples at pixel corners, OpenGL at centres."""
        matrix = self._scene.camera.projection_matrix()
        matrix[:2, 2] += 1 / size
        return matrix.T.ravel().tolist()

    def close(self) -> None:
        pass
