"""Scenes as data, before any physics: each factor of randomisation, the splits, the layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sim.appearances import DEFAULT_TABLE, SPLITS
from sim.objects import FIXTURES, OBJECTS
from sim.rotations import euler_quaternion, multiply, rotate
from sim.scenes import FACTORS, SIZES, draw_scene, read_factors
from sim.state import OBJECT_NAMES
from sim.tasks import TASK_NAMES, TASKS
from sim.world import World


def scenes(task, factors="all", split="train", count=60):
    return [draw_scene(TASKS[task], np.random.default_rng(seed), factors, split) for seed in range(count)]


FIELDS_OF = {  # factor -> fields of a scene that it changes; those of its items as "items.field"
    "size": {"items.scale", "items.mass_kg"},
    "mass": {"items.mass_kg"},
    "friction": {"items.friction"},
    "look": {"items.appearance", "items.tint"},
    "light": {"light"},
    "table": {"table_material", "table_tint"},
    "camera": {"camera"},
    "distractors": {"items.count"},
    "start": {"start_m", "start_yaw_rad"},
    "actuation": {"actuation_noise"},
    "delay": {"delay_steps"},
}


def parts(scene):
    values = {name: value for name, value in vars(scene).items() if name not in ("task", "split", "noise_seed")}
    items = (*values.pop("objects"), *values.pop("fixtures"))
    values["items.count"] = len(items)
    for name in vars(items[0]):
        values[f"items.{name}"] = tuple(getattr(item, name) for item in items)
    return values


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_changes_its_own_fields_and_nothing_else(factor):
    changed = set()
    for none, one in zip(scenes("lift-can", "none", count=20), scenes("lift-can", factor, count=20), strict=True):
        if factor == "distractors":  # compares the bodies that both scenes hold
            shared = min(len(none.objects), len(one.objects))
            if len(none.objects) != len(one.objects):
                changed.add("items.count")
            none, one = replace(none, objects=none.objects[:shared]), replace(one, objects=one.objects[:shared])
        before, after = parts(none), parts(one)
        changed |= {name for name in before if before[name] != after[name]}
    assert changed == FIELDS_OF[factor]


@pytest.mark.parametrize("factor", [name for name in FACTORS if name != "distractors"])
def test_switching_a_factor_off_leaves_every_other_as_it_was(factor):
    own = FIELDS_OF[factor] | ({"items.orientation"} if factor == "start" else set())  # of the held object
    differ = set()
    pairs = zip(scenes("place-bowl", "all", count=9), scenes("place-bowl", f"all,-{factor}", count=9), strict=True)
    for everything, less in pairs:
        before, after = parts(everything), parts(less)
        differ |= {name for name in before if before[name] != after[name]}
    assert differ == own


def test_without_randomisation_bodies_have_the_sizes_masses_and_appearances_of_their_records():
    for scene in scenes("place-plate", "none", count=5):
        for item in scene.objects:
            spec = OBJECTS[OBJECT_NAMES[item.index]]
            assert (item.scale, item.mass_kg, item.friction) == (1.0, spec.mass_kg, spec.friction)
            assert item.appearance == spec.appearances.default
        assert (scene.delay_steps, scene.actuation_noise, scene.table_material) == (0, 0.0, DEFAULT_TABLE)


def test_no_size_of_the_held_out_split_occurs_in_training():
    sizes = {
        split: [item.scale for scene in scenes("lift-can", "all", split, 200) for item in scene.objects]
        for split in SPLITS
    }
    (low, high), *_ = SIZES["train"]
    assert all(low <= size <= high for size in sizes["train"])
    assert not any(low < size < high for size in sizes["test"])
    assert min(sizes["test"]) < low
    assert max(sizes["test"]) > high


def test_no_appearance_of_the_held_out_split_occurs_in_training():
    used = {split: set() for split in SPLITS}
    for split in SPLITS:
        for scene in scenes("lift-can", "all", split, 100) + scenes("place-bowl", "all", split, 100):
            for item in scene.objects:
                used[split].add(item.appearance)
            for item in scene.fixtures:
                used[split].add(item.appearance)
            used[split].add((scene.table_material,))
    assert not used["train"] & used["test"]
    assert len(used["train"]) > 800
    assert len(used["test"]) == 2 * 10 + 4


def test_the_held_out_split_differs_even_where_nothing_is_randomised():
    for scene in scenes("lift-can", "none", "test", 10):
        assert all(abs(item.scale - 1) >= 0.08 for item in scene.objects)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_scene_holds_the_objects_and_fixtures_of_its_task(task):
    for scene in scenes(task, count=30):
        indices = [item.index for item in scene.objects]
        assert len(set(indices)) == len(indices)
        if scene.task.skill == "lift":
            assert indices[0] == scene.task.target
            assert 3 <= len(indices) <= 5
            assert scene.fixtures == ()
        else:
            assert len(indices) == 1
            assert sorted(item.index for item in scene.fixtures) == list(range(len(FIXTURES)))


def test_every_object_is_held_in_some_place_scene_and_every_number_of_distractors_occurs():
    assert {scene.objects[0].index for scene in scenes("place-bowl", count=100)} == set(range(len(OBJECTS)))
    assert {len(scene.objects) for scene in scenes("lift-can")} == {3, 4, 5}


def test_objects_seldom_start_close_to_each_other():
    gaps = []
    for scene in scenes("lift-milk", count=100):
        positions = np.array([item.position_xy_m for item in scene.objects])
        distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
        gaps.append(distance[np.triu_indices(len(positions), 1)].min())
    assert np.median(gaps) >= 0.125
    assert min(gaps) > 0.07


def test_factors_are_read_from_words():
    assert read_factors("all") == tuple(FACTORS)
    assert read_factors("none") == ()
    assert read_factors("light,size") == ("size", "light")
    assert read_factors("all,-delay") == tuple(name for name in FACTORS if name != "delay")
    assert read_factors("all,light") == tuple(FACTORS)
    assert read_factors("-delay") == read_factors("all, -delay") == read_factors("all,-delay")
    assert read_factors(()) == ()
    with pytest.raises(ValueError, match="unknown factor ''"):
        read_factors("")
    with pytest.raises(ValueError, match=r"unknown factor 'lihgt'.*Did you mean 'light'"):
        read_factors("lihgt")
    with pytest.raises(ValueError, match=r"unknown split 'tset'.*Did you mean 'test'"):
        scenes("lift-can", split="tset", count=1)


def test_euler_angles_rotate_about_x_then_y_then_z():
    quarter = np.pi / 2
    assert rotate(euler_quaternion(quarter, 0, 0), np.array([0.0, 1.0, 0.0])) == pytest.approx([0, 0, 1])
    assert rotate(euler_quaternion(0, quarter, 0), np.array([0.0, 0.0, 1.0])) == pytest.approx([1, 0, 0])
    assert rotate(euler_quaternion(quarter, 0, quarter), np.array([0.0, 0.0, 1.0])) == pytest.approx([1, 0, 0])
    both = multiply(euler_quaternion(0, 0, quarter), euler_quaternion(quarter, 0, 0))
    assert both == pytest.approx(euler_quaternion(quarter, 0, quarter))


def test_nothing_overlaps_and_everything_rests_where_it_was_put():
    """Otherwise objects are flung apart, and the first image shows another scene than the one sampled."""
    world = World(48, "tiny")
    for number in range(60):
        task = TASKS[TASK_NAMES[number % 7]]
        scene = draw_scene(task, np.random.default_rng([5, number]))
        world.reset(scene)
        state = world.snapshot()
        for item in scene.objects:
            distance = np.linalg.norm(state["object_position"][item.index][:2] - item.position_xy_m)
            assert distance < 0.005, (number, item.index)
            assert np.linalg.norm(state["object_velocity"][item.index]) < 0.03, (number, item.index)
            assert np.linalg.norm(state["object_angular_velocity"][item.index]) < 0.5, (number, item.index)
    world.close()
