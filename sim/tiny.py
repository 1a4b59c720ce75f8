"""PyBullet's TinyRenderer, which needs nothing of the machine: the same bodies, looks and camera as sim/opengl.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.bullet import pybullet
from sim.drawing import TABLE, Body, Geometry, segment_of
from sim.looks import TABLES, texture
from sim.scenes import Scene

SPECULAR = 0.05


class TinyRenderer:
    """Draws the visual shapes of one PyBullet client. `dress` is called once for each scene."""

    def __init__(self, client: int, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._files: dict[Any, str] = {}  # the picture of a paint or of a table

    def dress(self, scene: Scene, bodies: list[Body]) -> None:
        camera, light = scene.camera, scene.light
        self._scene, self._bodies = scene, bodies
        ambient, diffuse = float(np.mean(light.ambient)), max(light.colour)
        fit = min(1.0, 0.95 / (ambient + diffuse + SPECULAR))  # what is brighter than white comes out in other colours
        self._options = {
            "viewMatrix": camera.view().T.ravel().tolist(),
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
                number = self._texture((scene.split, scene.table_look), TABLES[scene.split][scene.table_look])
                self._paint(body, 0, number, scene.table_tint)
            if body.segment == "robot":
                colour = [*body.paints[0].colour, 1.0]
                pybullet.changeVisualShape(body.uid, body.link, rgbaColor=colour, physicsClientId=self._client)
                continue
            for part, paint in enumerate(body.paints):
                self._paint(body, part, self._texture(paint, lambda paint=paint: texture(paint)), body.tint)

    def _paint(self, body: Body, part: int, number: int, tint: tuple[float, ...]) -> None:
        pybullet.changeVisualShape(
            body.uid,
            body.link,
            shapeIndex=part,
            textureUniqueId=number,
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
        """The picture [size, size, 3]. The poses are those of the client."""
        flags = pybullet.ER_NO_SEGMENTATION_MASK
        rgba = pybullet.getCameraImage(
            size, size, shadow=1, flags=flags, projectionMatrix=self._lens(size), **self._options
        )[2]
        return np.ascontiguousarray(np.asarray(rgba, np.uint8).reshape(size, size, 4)[..., :3])

    def geometry(self, size: int, poses: list[NDArray[np.float64]]) -> Geometry:
        """Depth and segmentation of the same view."""
        _, _, _, depth, owner = pybullet.getCameraImage(
            size, size, shadow=0, projectionMatrix=self._lens(size), **self._options
        )
        segments = np.zeros((size, size), np.uint8)
        for uid, value in {body.uid: segment_of(body) for body in self._bodies}.items():
            segments[np.reshape(owner, (size, size)) == uid] = value
        return Geometry.from_buffer(np.reshape(depth, (size, size)), segments, self._scene.camera)

    def _lens(self, size: int) -> list[float]:
        """TinyRenderer's pixels are centred where OpenGL's have a corner."""
        lens = self._scene.camera.lens()
        lens[:2, 2] += 1 / size
        return lens.T.ravel().tolist()

    def close(self) -> None:
        pass
