"""The OpenGL renderer (headless, through EGL): textured bodies, one light with shadows, depth and segmentation.

PyBullet's own EGL plugin always renders a 4096 x 4096 shadow map of 20 x 20 m, with mipmaps, whatever the image size
(docs/world.md). This one maps shadows in the workspace only, and may be opened many times in a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

import moderngl
import numpy as np
from numpy.typing import NDArray

from sim.bodies import MAX_PARTS
from sim.camera_geometry import CameraSpec
from sim.drawing import TABLE, Geometry, RenderBody, segment_of
from sim.forks import check_not_forked
from sim.materials import Material, texture
from sim.meshes import Mesh
from sim.scenes import Scene

BACKGROUND = (0.70, 0.72, 0.75)
SHADOWED_CENTRE_M = np.array([0.52, 0.0, 0.12])
SHADOWED_RADIUS_M = 0.62
SMALL_IMAGE_PX = 160
SHADOW_PX = (512, 1024)  # side of the shadow map for small and for larger images

VERTEX = """
#version 330
in vec3 position; in vec3 normal; in vec2 uv; in float part;
uniform mat4 model, view, projection, to_shadow; uniform float scale; uniform float layers[8];
out vec3 world_normal; out vec3 world_position; out vec3 shadow_position; out vec3 texture_coordinate;
void main() {
    vec4 world = model * vec4(position * scale, 1.0);
    world_position = world.xyz;
    world_normal = mat3(model) * normal;
    shadow_position = (to_shadow * world).xyz * 0.5 + 0.5;
    texture_coordinate = vec3(uv, layers[int(part)]);
    gl_Position = projection * view * world;
}
"""
FRAGMENT = """
#version 330
in vec3 world_normal; in vec3 world_position; in vec3 shadow_position; in vec3 texture_coordinate;
uniform vec3 light, light_colour, ambient, eye, tint; uniform float gloss;
uniform sampler2DShadow shadow; uniform sampler2DArray materials;
out vec4 colour;
void main() {
    vec3 normal = normalize(world_normal);
    float cosine = dot(normal, light);
    float lit = 0.0;
    if (cosine > 0.0) {
        vec3 sample_at = shadow_position;
        sample_at.z -= 0.0015 + 0.002 * (1.0 - cosine);
        lit = texture(shadow, sample_at) * cosine;
    }
    vec3 half_vector = normalize(light + normalize(eye - world_position));
    float specular = gloss * pow(max(dot(normal, half_vector), 0.0), 24.0) * lit;
    vec3 base = tint * texture(materials, texture_coordinate).rgb;
    colour = vec4(base * (ambient * (0.85 + 0.15 * normal.z) + light_colour * lit) + light_colour * specular, 1.0);
}
"""
DEPTH_VERTEX = """
#version 330
in vec3 position;
uniform mat4 model, view, projection; uniform float scale;
void main() { gl_Position = projection * view * model * vec4(position * scale, 1.0); }
"""
DEPTH_FRAGMENT = """
#version 330
void main() {}
"""
SEGMENT_FRAGMENT = """
#version 330
uniform float segment;
out vec4 colour;
void main() { colour = vec4(segment / 255.0, 0.0, 0.0, 1.0); }
"""


class OpenGLError(ValueError):
    """OpenGL does not start on this machine."""


def open_context() -> Any:
    """Creates an EGL context. OpenGLError if EGL does not start; ValueError in a fork, where it would hang."""
    check_not_forked("EGL", _first_process())
    _load_triton()
    try:
        settings: dict[str, Any] = {"backend": "egl", "libgl": "libGL.so.1", "libegl": "libEGL.so.1"}
        return moderngl.create_context(require=330, standalone=True, **settings)
    except Exception as error:  # moderngl raises bare Exceptions
        raise OpenGLError(f"EGL does not start: {error}") from error


@functools.cache
def _first_process() -> int:
    """Id of the process that opened the first context; its forks inherit the cached value."""
    return os.getpid()


@functools.cache
def _load_triton() -> None:
    """Loads Triton before Mesa, because torch would load it later. Both export the symbols of their own LLVM, and the
    library loaded second resolves to those of the first: Mesa survives that, Triton crashes the process."""
    spec = importlib.util.find_spec("triton")
    library = Path((spec and spec.origin) or "/none").parent / "_C" / "libtriton.so"
    if library.is_file():
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(library))


class OpenGLRenderer:
    """Renders the bodies of a PyBullet client. Call `set_appearance` once per scene and `render` once per image."""

    def __init__(self, meshes: dict[str, list[Mesh]]) -> None:
        self._context = c = open_context()
        with c:  # a process may have several contexts
            self._shade = c.program(vertex_shader=VERTEX, fragment_shader=FRAGMENT)
            self._depth_only = c.program(vertex_shader=DEPTH_VERTEX, fragment_shader=DEPTH_FRAGMENT)
            self._segment = c.program(vertex_shader=DEPTH_VERTEX, fragment_shader=SEGMENT_FRAGMENT)
            self._arrays = {name: self._upload(parts) for name, parts in meshes.items()}
            c.enable_only(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
        self._textures: dict[str, Any] = {}  # texture arrays of the scene's materials
        self._targets: dict[int, tuple[Any, Any]] = {}
        self._shadows: dict[int, tuple[Any, Any]] = {}

    def _upload(self, parts: list[Mesh]) -> tuple[Any, Any, Any]:
        """Vertex arrays of one body, for the shading, depth and segmentation programs."""
        c = self._context
        rows = np.concatenate(
            [np.column_stack([m.vertices, m.normals, m.uv, np.full(len(m.vertices), k)]) for k, m in enumerate(parts)]
        )
        shaded = self._indexed(rows)
        positions = self._indexed(rows[:, :3])
        return (
            c.vertex_array(self._shade, [(shaded[0], "3f 3f 2f f", "position", "normal", "uv", "part")], shaded[1]),
            c.vertex_array(self._depth_only, [(positions[0], "3f", "position")], positions[1]),
            c.vertex_array(self._segment, [(positions[0], "3f", "position")], positions[1]),
        )

    def _indexed(self, rows: NDArray[np.float64]) -> tuple[Any, Any]:
        unique, index = np.unique(np.round(rows, 6), axis=0, return_inverse=True)
        return self._context.buffer(unique.astype("f4").tobytes()), self._context.buffer(index.astype("i4").tobytes())

    def set_appearance(self, scene: Scene, bodies: list[RenderBody]) -> None:
        """Takes materials, light and camera pose from the scene; `bodies` are all that is rendered from now on."""
        self._scene = scene
        table = next(body for body in bodies if body.name == TABLE)
        parts = list(dict.fromkeys(m for body in bodies if body is not table for m in body.materials))
        with self._context:
            self._upload_textures(table=list(table.materials), parts=parts)
        self._bodies: list[tuple[RenderBody, NDArray[np.float32]]] = []
        for body in bodies:
            layers = [0 if body is table else parts.index(material) for material in body.materials]
            self._bodies.append((body, np.resize(np.array(layers, "f4"), MAX_PARTS)))
        self._view, self._projection = scene.camera.view_matrix(), scene.camera.projection_matrix()
        self._light_view, self._light_projection = _light_matrices(np.array(scene.light.direction))

    def _upload_textures(self, **materials: list[Material]) -> None:
        """Replaces the texture arrays. There is no end of materials in training, so none is kept: 16 parts and a table
        take 2 ms per scene, and a fragment is shaded as fast as with fixed textures."""
        for name, layers in materials.items():
            if name in self._textures:
                self._textures[name].release()
            self._textures[name] = _texture_array(self._context, [texture(material) for material in layers])

    def render(self, size: int, poses: list[NDArray[np.float64]]) -> NDArray[np.uint8]:
        """Renders an image, uint8 [size, size, 3]. `poses` [4, 4]: body -> world, in the order of `set_appearance`."""
        with self._context:
            return self._render(size, [_bytes(pose) for pose in poses])

    def _render(self, size: int, poses: list[bytes]) -> NDArray[np.uint8]:
        self._draw_shadow(size, poses)
        frame, image = self._target(size)
        frame.use()
        frame.clear(*BACKGROUND)
        program, light = self._shade, self._scene.light
        program["view"].write(_bytes(self._view))
        program["projection"].write(_bytes(self._projection))
        program["to_shadow"].write(_bytes(self._light_projection @ self._light_view))
        program["light"].value = light.direction
        program["light_colour"].value = light.colour
        program["ambient"].value = light.ambient
        program["eye"].value = self._scene.camera.eye_m
        program["shadow"].value, program["materials"].value = 0, 1
        self._shadow_map(size)[1].use(0)
        self._textures["parts"].use(1)
        self._textures["table"].use(2)
        # the table last: its texture array differs
        for (body, layers), pose in zip(reversed(self._bodies), reversed(poses), strict=True):
            program["model"].write(pose)
            program["scale"].value = body.scale
            program["tint"].value = body.tint
            program["layers"].write(layers.tobytes())
            program["gloss"].value = body.gloss
            if body.name == TABLE:
                program["materials"].value = 2
            self._arrays[body.name][0].render()
        frame.read_into(image, components=3, alignment=1)
        return image[::-1].copy()

    def geometry(self, size: int, poses: list[NDArray[np.float64]]) -> Geometry:
        """Renders depth and segmentation."""
        with self._context:
            return self._geometry(size, poses)

    def _geometry(self, size: int, poses: list[NDArray[np.float64]]) -> Geometry:
        frame, _ = self._target(size)
        frame.use()
        frame.clear(0.0, 0.0, 0.0)
        program = self._segment
        program["view"].write(_bytes(self._view))
        program["projection"].write(_bytes(self._projection))
        for (body, _), pose in zip(self._bodies, poses, strict=True):
            program["model"].write(_bytes(pose))
            program["scale"].value = body.scale
            program["segment"].value = segment_of(body)
            self._arrays[body.name][2].render()
        segments = np.frombuffer(frame.read(components=1, alignment=1), np.uint8).reshape(size, size)
        depth = np.frombuffer(frame.read(attachment=-1, components=1, dtype="f4", alignment=1), "f4")
        return Geometry.from_buffer(depth.reshape(size, size)[::-1], segments[::-1].copy(), self._scene.camera)

    def _draw_shadow(self, size: int, poses: list[bytes]) -> None:
        frame, _ = self._shadow_map(size)
        frame.use()
        frame.clear()
        program = self._depth_only
        program["view"].write(_bytes(self._light_view))
        program["projection"].write(_bytes(self._light_projection))
        for (body, _), pose in zip(self._bodies, poses, strict=True):
            if body.name != TABLE:
                program["model"].write(pose)
                program["scale"].value = body.scale
                self._arrays[body.name][1].render()

    def _target(self, size: int) -> tuple[Any, NDArray[np.uint8]]:
        if size not in self._targets:
            c = self._context
            frame = c.framebuffer([c.texture((size, size), 4)], c.depth_texture((size, size)))
            self._targets[size] = (frame, np.empty((size, size, 3), np.uint8))
        return self._targets[size]

    def _shadow_map(self, size: int) -> tuple[Any, Any]:
        side = SHADOW_PX[size > SMALL_IMAGE_PX]
        if side not in self._shadows:
            depth = self._context.depth_texture((side, side))
            depth.compare_func, depth.filter = "<=", (moderngl.LINEAR, moderngl.LINEAR)
            depth.repeat_x = depth.repeat_y = False
            self._shadows[side] = (self._context.framebuffer(depth_attachment=depth), depth)
        return self._shadows[side]

    def close(self) -> None:
        self._context.release()


def _texture_array(context: Any, images: list[NDArray[np.uint8]]) -> Any:
    size = images[0].shape[0]
    data = np.stack([image[::-1] for image in images])
    array = context.texture_array((size, size, len(images)), 3, data.tobytes(), alignment=1)
    array.build_mipmaps()
    array.filter = (moderngl.LINEAR_MIPMAP_NEAREST, moderngl.LINEAR)
    return array


def _light_matrices(direction: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """View and projection matrices [4, 4] of the shadow map: orthographic, along the light."""
    eye = CameraSpec(eye_m=tuple(SHADOWED_CENTRE_M + 1.5 * direction), look_at_m=tuple(SHADOWED_CENTRE_M))
    near, far = 0.3, 2.7
    projection = np.diag([1 / SHADOWED_RADIUS_M, 1 / SHADOWED_RADIUS_M, -2 / (far - near), 1.0])
    projection[2, 3] = -(far + near) / (far - near)
    return eye.view_matrix(), projection


def _bytes(matrix: NDArray[np.float64]) -> bytes:
    return matrix.T.astype("f4").tobytes()
