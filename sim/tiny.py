"""PyBullet's TinyRenderer, a CPU fallback without dependencies: same bodies, materials and camera as sim/opengl.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.bullet import pybullet
from sim.drawing import Geometry, RenderBody, segment_of
from sim.materials import Material, texture
from sim.scenes import Scene

SPECULAR = 0.05


class TinyRenderer:
    """Renders the visual shapes of one PyBullet client. Call `set_appearance` once per scene."""

    def __init__(self, client: int, folder: Path) -> None:
        self._client = client
        self._file = (folder / "texture.bmp").open("wb")  # one for all textures: to open a file takes long

    def set_appearance(self, scene: Scene, bodies: list[RenderBody]) -> None:
        camera, light = scene.camera, scene.light
        self._scene, self._bodies = scene, bodies
        self._loaded: dict[Material, int] = {}  # material -> PyBullet's texture of it
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
            if body.segment == "robot":
                colour = [*body.materials[0].colour, 1.0]
                pybullet.changeVisualShape(body.uid, body.link, rgbaColor=colour, physicsClientId=self._client)
                continue
            for part, material in enumerate(body.materials):
                self._set_material(body, part, self._texture(material), body.tint)

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

    def _texture(self, material: Material) -> int:
        """Loads the texture image of a material without PyBullet's cache of files: that never frees a texture, and in
        training there is no end of materials. PyBullet then reads the meshes again too, 11 ms per reset."""
        if material not in self._loaded:
            from PIL import Image

            self._file.seek(0)
            Image.fromarray(texture(material)).save(self._file, "BMP")
            self._file.truncate()
            self._file.flush()
            pybullet.setPhysicsEngineParameter(enableFileCaching=0, physicsClientId=self._client)
            self._loaded[material] = pybullet.loadTexture(self._file.name, physicsClientId=self._client)
            pybullet.setPhysicsEngineParameter(enableFileCaching=1, physicsClientId=self._client)
        return self._loaded[material]

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
        self._file.close()
