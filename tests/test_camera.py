"""Both renderers: geometry, depth, segmentation, appearance of the scene, and the fallback without EGL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sim.camera
from sim.appearances import TEST_TABLES
from sim.camera import resolve_renderer
from sim.drawing import SEGMENTS, overlaps
from sim.materials import Material, texture
from sim.opengl import OpenGLError
from sim.scenes import Light, draw_scene
from sim.tasks import TASK_NAMES, TASKS
from sim.world import World

needs_egl = pytest.mark.skipif(resolve_renderer("auto") != "egl", reason="EGL does not start here")
RENDERERS = [pytest.param("egl", marks=needs_egl), "tiny"]
LARGE_PX = 60


@pytest.fixture(scope="module", params=RENDERERS)
def world(request):
    world = World(160, request.param)
    yield world
    world.close()


def scene_of(task="lift-can", seed=0, **changes):
    return replace(draw_scene(TASKS[task], np.random.default_rng(seed), "none"), **changes)


@needs_egl
@pytest.mark.parametrize("size", [64, 472])
def test_both_renderers_show_the_same_geometry(size):
    worlds = [World(size, renderer) for renderer in ("egl", "tiny")]
    ious = []
    for number, task in enumerate(TASK_NAMES):
        scene = draw_scene(TASKS[task], np.random.default_rng(number))
        for world in worlds:
            world.reset(scene)
        assert np.array_equal(worlds[0].snapshot().vector, worlds[1].snapshot().vector)
        egl, tiny = (world.geometry() for world in worlds)
        ious += overlaps(egl.segmentation, tiny.segmentation, LARGE_PX)
        same = (egl.segmentation == tiny.segmentation) & (egl.segmentation > 0)
        assert np.median(np.abs(egl.depth_m - tiny.depth_m)[same]) < 1e-3
    for world in worlds:
        world.close()
    assert len(ious) > 25
    assert min(ious) >= 0.97


def test_the_depth_of_the_table_is_its_distance_along_the_optical_axis(world):
    scene = scene_of()
    world.reset(scene)
    geometry = world.geometry()
    row, column = np.argwhere(geometry.segmentation == SEGMENTS.index("table")).T
    half = np.tan(np.radians(scene.camera.field_of_view_deg) / 2)
    x, y = ((column + 0.5) / 80 - 1) * half, (1 - (row + 0.5) / 80) * half
    ray = np.stack([x, y, -np.ones(len(row))], axis=1) @ scene.camera.axes()
    assert geometry.depth_m[row, column] == pytest.approx(scene.camera.eye_m[2] / -ray[:, 2], rel=2e-3)
    assert geometry.depth_m.max() <= scene.camera.far_m


def test_the_segmentation_holds_the_bodies_of_the_scene_and_no_others(world):
    scene = scene_of("place-plate")
    world.reset(scene)
    shown = {SEGMENTS[value] for value in np.unique(world.geometry().segmentation)}
    assert {"background", "table", "robot", "bowl", "plate", "divider-plate"} <= shown
    assert len(shown) <= 7


def test_appearances_tables_and_light_are_those_of_the_scene(world):
    images = []
    painted = (Material((0.2, 0.2, 0.9)),) * 4
    repainted = tuple(replace(item, appearance=painted[: len(item.appearance)]) for item in scene_of().objects)
    for changes in (
        {},
        {"table_material": TEST_TABLES[3]},
        {"light": Light(ambient=(0.2, 0.2, 0.2))},
        {"objects": repainted},
    ):
        world.reset(scene_of(**changes))
        images.append(world.render().astype(int))
    for other in images[1:]:
        assert np.abs(other - images[0]).mean() > 1.5
    assert images[2].mean() < images[0].mean() - 10


def test_materials_do_not_depend_on_the_scenes_before(world):
    """Renderers hold the textures of one scene at a time, and PyBullet has a cache of them."""
    scenes = [draw_scene(TASKS["lift-can"], np.random.default_rng(seed), "look,table") for seed in (1, 2)]
    images = []
    for scene in (*scenes, *scenes):
        world.reset(scene)
        images.append(world.render())
    assert np.array_equal(images[0], images[2])
    assert np.array_equal(images[1], images[3])
    assert np.abs(images[0].astype(int) - images[1]).mean() > 3


@needs_egl
def test_both_renderers_show_the_same_materials():
    """Mean colour of each object, sampled looks: the renderers shade differently, but not another colour."""
    scene = draw_scene(TASKS["lift-can"], np.random.default_rng(3), "look")
    means = []
    for renderer in ("egl", "tiny"):
        world = World(160, renderer)
        world.reset(scene)
        image, segments = world.render().astype(float), world.geometry().segmentation
        means.append([image[segments == 3 + item.index].mean(0) for item in scene.objects])
        world.close()
    egl, tiny = (np.array(mean) / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means)
    assert ((egl * tiny).sum(1) > 0.98).all()


def test_a_texture_mixes_the_two_colours_where_the_pattern_is():
    image = texture(Material((0.2, 0.4, 0.6), "halves", (1.0, 0.0, 0.5)))
    assert image.shape == (64, 64, 3)
    assert np.unique(image[:32].reshape(-1, 3), axis=0).tolist() == [[51, 102, 153]]
    assert np.unique(image[32:].reshape(-1, 3), axis=0).tolist() == [[255, 0, 128]]


def test_a_shadow_falls_where_the_light_comes_from_the_other_side(world):
    """The table beside a standing can is darker on the side away from the light."""
    scene = scene_of()
    can = replace(scene.objects[0], position_xy_m=(0.52, 0.0), orientation=(0.0, 0.0, 0.0, 1.0))
    means = {}
    for side in (-1.0, 1.0):
        light = Light(direction=(0.0, 0.6 * side, 0.8))
        world.reset(replace(scene, objects=(can,), light=light, start_m=(0.35, 0.0, 0.35)))
        means[side] = world.render().astype(int)
    change = means[1.0].sum(-1) - means[-1.0].sum(-1)
    table = world.geometry().segmentation == SEGMENTS.index("table")
    assert (change[table] < -20).sum() > 30
    assert (change[table] > 20).sum() > 30


def test_one_scene_gives_the_same_image_in_another_process(world):
    world.reset(scene_of("lift-milk", 4))
    image = world.render()
    script = (
        "import sys, zlib, numpy as np; from sim.world import World; from sim.scenes import draw_scene;"
        "from sim.tasks import TASKS; world = World(160, sys.argv[1]);"
        "world.reset(draw_scene(TASKS['lift-milk'], np.random.default_rng(4), 'none'));"
        "print(zlib.crc32(world.render().tobytes()))"
    )
    run = [sys.executable, "-c", script, world.camera.renderer]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]).stdout
    assert int(printed.split()[-1]) == zlib.crc32(image.tobytes())


def test_several_worlds_may_render_in_one_process(world):
    other = World(64, world.camera.renderer)
    alone = []
    for each, task in ((world, "lift-can"), (other, "place-bowl")):
        each.reset(scene_of(task))
        alone.append(each.render())
    assert [image.shape[0] for image in alone] == [160, 64]
    for _ in range(2):
        assert np.array_equal(world.render(), alone[0])
        assert np.array_equal(other.render(), alone[1])
    other.close()
    assert np.array_equal(world.render(), alone[0])
    assert world.camera.render(64).std() > 10


@needs_egl
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_loading_triton_after_mesa_does_not_crash_the_process():
    """Mesa's LLVM and Triton's, see sim/opengl.py."""
    script = (
        "import numpy as np; from sim.world import World; from sim.scenes import draw_scene; "
        "from sim.tasks import TASKS;"
        "world = World(64, 'egl'); world.reset(draw_scene(TASKS['lift-can'], np.random.default_rng(0)));"
        "world.render(); import torch, triton._C.libtriton; world.render(); print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout.split()[-1:] == ["alive"], done.stderr


def test_without_egl_one_line_says_which_renderer_is_used_and_how_to_get_egl(monkeypatch, capsys):
    def fail():
        raise OpenGLError("EGL does not start: libEGL.so.1 not found")

    monkeypatch.setattr(sim.camera, "open_context", fail)
    sim.camera._why_no_egl.cache_clear()
    try:
        assert resolve_renderer("auto") == "tiny"
        assert resolve_renderer("auto") == "tiny"
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "rendering with TinyRenderer" in printed
        assert "libegl1" in printed
        with pytest.raises(ValueError, match=r"libEGL\.so\.1 not found: use --renderer tiny, or install EGL"):
            resolve_renderer("egl")
    finally:
        sim.camera._why_no_egl.cache_clear()
