"""Sampled appearances of the train split: variety, the gap to the test split, and the test split itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import astuple

import numpy as np
import pytest

from sim.appearances import (
    DEFAULT_TABLE,
    TEST_TABLES,
    WORDS,
    Appearances,
    Painter,
    colours_of,
    hue_deg,
    hue_distance_deg,
    is_far,
    sample_table,
    tinted,
)
from sim.materials import Material, mask
from sim.objects import FIXTURES, OBJECTS
from sim.scenes import draw_scene
from sim.state import FIXTURE_NAMES, OBJECT_NAMES
from sim.tasks import TASKS

BODIES = {**OBJECTS, **FIXTURES}
GAP_DEG = 25.0
DRAWS = 2000


def colours(appearance):
    return [colour for material in appearance for colour in colours_of(material)]


def test_hues_are_angles_on_the_colour_circle():
    assert [hue_deg(colour) for colour in ((1, 0, 0), (1, 1, 0), (0, 0.5, 0), (0, 0, 1), (1, 0, 1))] == pytest.approx(
        [0, 60, 120, 240, 300]
    )
    assert hue_deg((0.5, 0.4, 0.36)) is None  # a chroma of 0.14
    assert hue_deg((0.5, 0.4, 0.34)) == pytest.approx(60 * (0.06 / 0.16))
    assert [hue_distance_deg(*pair) for pair in ((10, 350), (350, 10), (90, 100), (0, 180))] == [20, 20, 10, 180]
    assert tinted((1.0, 0.5, 0.2), (0.9, 1.0, 0.5)) == (0.9, 0.5, 0.1)


def hues_too_close(test, sampled):
    """Chromatic sampled colours within 25 degrees of a chromatic test colour of the same body."""
    taken = [hue for appearance in test for colour in colours(appearance) if (hue := hue_deg(colour)) is not None]
    assert taken
    found = [hue for colour in sampled if (hue := hue_deg(colour)) is not None]
    return sum(any(hue_distance_deg(hue, other) < GAP_DEG for other in taken) for hue in found), len(found)


@pytest.mark.parametrize("name", BODIES)
def test_no_sampled_hue_comes_within_25_degrees_of_the_test_splits(name):
    spec, rng = BODIES[name], np.random.default_rng(0)
    free = Appearances(default=spec.appearances.default, test=(), sample=spec.appearances.sample)
    looks = [spec.appearances.sampled(rng) for _ in range(DRAWS)]
    close, chromatic = hues_too_close(spec.appearances.test, [c for look in looks for c in colours(look)])
    assert close == 0
    assert chromatic > DRAWS / 2
    careless = [colour for _ in range(100) for colour in colours(free.sampled(rng))]
    assert hues_too_close(spec.appearances.test, careless)[0] > 10  # the check above can fail


def test_no_hue_of_a_scene_comes_within_25_degrees_of_the_test_splits_with_its_tint():
    for seed in range(150):
        scene = draw_scene(TASKS["place-bowl" if seed % 2 else "lift-can"], np.random.default_rng(seed))
        bodies = [(OBJECTS[OBJECT_NAMES[item.index]], item) for item in scene.objects]
        bodies += [(FIXTURES[FIXTURE_NAMES[item.index]], item) for item in scene.fixtures]
        for spec, item in bodies:
            drawn = [tinted(colour, item.tint) for colour in colours(item.appearance)]
            assert hues_too_close(spec.appearances.test, [*drawn, *colours(item.appearance)])[0] == 0


@pytest.mark.parametrize("name", BODIES)
def test_every_body_comes_pale_grey_dark_and_vivid_and_in_many_hues(name):
    """Its largest colour, that of the first part: so colours do not tell which body it is."""
    spec, rng = BODIES[name], np.random.default_rng(1)
    found = Counter()
    for _ in range(1000):
        colour = spec.appearances.sampled(rng)[0].colour
        hue, chroma = hue_deg(colour), max(colour) - min(colour)
        found["pale"] += min(colour) > 0.7
        found["dark"] += max(colour) < 0.4
        found["grey"] += chroma < 0.06
        found["vivid"] += chroma > 0.55
        if hue is not None:
            found[int(hue // 30)] += 1
    assert all(found[kind] > 30 for kind in ("pale", "dark", "grey", "vivid")), found
    assert sum(found[sector] > 20 for sector in range(12)) >= 4, found


def test_colours_tell_objects_apart_hardly_better_than_chance():
    """The nearest looks in the colour of the first part name one of seven objects (chance: 14%)."""
    rng = np.random.default_rng(4)
    looks = np.array([[s.appearances.sampled(rng)[0].colour for _ in range(400)] for s in OBJECTS.values()])
    known, asked = looks[:, :300].reshape(-1, 3), looks[:, 300:].reshape(-1, 3)
    nearest = np.linalg.norm(asked[:, None] - known, axis=-1).argsort(axis=1)[:, :31] // 300
    votes = (nearest[..., None] == np.arange(len(OBJECTS))).sum(1)
    accuracy = (votes.argmax(1) == np.repeat(np.arange(len(OBJECTS)), 100)).mean()
    assert 0.1 < accuracy < 0.3


def test_structure_stays():
    rng = np.random.default_rng(2)
    sampled = {name: [spec.appearances.sampled(rng) for _ in range(300)] for name, spec in OBJECTS.items()}
    for _, _, top, bottom in sampled["can"]:  # metal ends
        assert top == bottom
        assert hue_deg(top.colour) is None
        assert min(top.colour) > 0.5
    for lower, _, shoulder, _ in sampled["bottle"]:
        assert lower == shoulder
    for carton, _, _, ridge in sampled["milk"]:
        assert carton == ridge
    leaves = np.array([leaves.colour for _, leaves in sampled["carrot"]])
    roots = np.array([root.colour for root, _ in sampled["carrot"]])
    assert leaves.max(1).mean() < roots.max(1).mean() - 0.1  # darker
    words = Counter(label.pattern for _, label, *_ in sampled["can"] if label.pattern.isupper())
    assert len(words) > 35
    assert words.keys() <= set(WORDS)


def test_labels_are_readable():
    rng = np.random.default_rng(3)
    for _ in range(500):
        label = Painter(rng).label()
        brightness = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (label.colour, label.second)]
        assert abs(brightness[0] - brightness[1]) > 0.34 or label.pattern == "plain"


def test_a_painter_that_finds_no_hue_paints_grey():
    everywhere = tuple(range(0, 360, 20))
    painter = Painter(np.random.default_rng(0), everywhere)
    assert all(hue_deg(painter.colour(("vivid",))) is None for _ in range(5))
    assert painter.colour(("vivid",), unlike=(0.0, 0.0, 0.0)) == pytest.approx((240 / 255,) * 3)


def test_without_a_sampler_each_part_is_painted_by_itself():
    plain = Appearances(default=(Material((1, 0, 0)), Material((0, 1, 0))), test=((Material((0, 0, 1)),) * 2,))
    first, second = (plain.sampled(np.random.default_rng(seed)) for seed in (0, 1))
    assert len(first) == 2
    assert first != second
    assert first == plain.sampled(np.random.default_rng(0))


def test_tables_are_many_and_far_from_those_of_the_test_split():
    rng = np.random.default_rng(0)
    tables = [sample_table(rng) for _ in range(1000)]
    assert len(set(tables)) > 950
    assert len({table.pattern for table in tables}) > 15
    assert not {table.pattern for table in tables} & {table.pattern for table in TEST_TABLES}
    assert all(is_far(table, other) for table in tables for other in TEST_TABLES)
    red_wood = Material((0.60, 0.45, 0.34), "wood-10", (0.48, 0.32, 0.22))
    assert not is_far(red_wood, TEST_TABLES[0])
    brightness = np.array([np.mean(table.colour) for table in tables])
    assert np.quantile(brightness, 0.1) < 0.5 < 0.8 < np.quantile(brightness, 0.9)


def test_the_words_on_training_labels_are_not_those_of_the_test_split():
    held_out = {m.pattern for spec in BODIES.values() for look in spec.appearances.test for m in look}
    assert not held_out & set(WORDS)
    assert {"WINE", "JUICE", "CORN", "OATS"} <= held_out


# ---------------------------------------------------------------------- the test split, which never changes


def digest(records):
    return hashlib.sha256(json.dumps(records).encode()).hexdigest()


def test_the_appearances_of_the_test_split_and_the_defaults_are_those_of_world_5():
    held_out = {
        name: [[astuple(material) for material in look] for look in spec.appearances.test]
        for name, spec in BODIES.items()
    }
    assert digest(held_out) == "d7d20fd7f9c8ee3503af767b747ec14121abfd8a249447a1491dbb892192af47"
    default = {name: [astuple(material) for material in spec.appearances.default] for name, spec in BODIES.items()}
    assert digest(default) == "3475f5377bf245da2d7112e901d4b69371b40c69ad259bd7d030792b322b3505"


def test_the_tables_of_the_test_split_are_those_of_world_5():
    assert [table.colour for table in TEST_TABLES] == [
        (0.66, 0.47, 0.36),
        (0.55, 0.60, 0.55),
        (0.62, 0.44, 0.42),
        (0.58, 0.62, 0.66),
    ]
    assert [table.second for table in TEST_TABLES] == [
        (0.50, 0.32, 0.22),
        (0.44, 0.50, 0.45),
        (0.52, 0.34, 0.33),
        (0.42, 0.45, 0.50),
    ]
    found = [(mask(table.pattern).mean(), mask(table.pattern).std()) for table in (*TEST_TABLES, DEFAULT_TABLE)]
    assert np.array(found) == pytest.approx(np.array(MASKS), abs=2e-3)


MASKS = [(0.4945, 0.2403), (0.5, 0.5), (0.5, 0.25), (0.4765, 0.2957), (0.5033, 0.3014)]  # mean, standard deviation


@pytest.mark.parametrize(
    ("task", "seed", "looks", "table", "tints", "table_tint", "light", "scales"),
    [
        (
            "lift-can",
            0,
            [1, 1, 0, 0],
            0,
            [0.860553, 0.84843, 0.884021, 0.843624],
            0.774201,
            [0.008734, 0.252948, 0.967441],
            [0.910756, 0.874684, 0.864508, 1.109299],
        ),
        (
            "lift-milk",
            1,
            [1, 1, 0, 0, 0],
            2,
            [0.89959, 0.98389, 0.85698, 0.867992, 0.818558],
            0.873814,
            [0.068318, 0.610288, 0.789229],
            [1.090237, 0.899087, 0.91349, 1.111473, 0.874889],
        ),
        (
            "place-bowl",
            2,
            [0, 1, 1, 1],
            1,
            [0.794408, 0.834821, 0.872487, 0.885442],
            0.825387,
            [0.102841, 0.676012, 0.729679],
            [1.092072],
        ),
    ],
)
def test_scenes_of_the_test_split_are_those_of_world_5(task, seed, looks, table, tints, table_tint, light, scales):
    scene = draw_scene(TASKS[task], np.random.default_rng(seed), "all", "test")
    items = (*scene.objects, *scene.fixtures)
    specs = [OBJECTS[OBJECT_NAMES[item.index]] for item in scene.objects]
    specs += [FIXTURES[FIXTURE_NAMES[item.index]] for item in scene.fixtures]
    found = [spec.appearances.test.index(item.appearance) for spec, item in zip(specs, items, strict=True)]
    assert found == looks
    assert TEST_TABLES.index(scene.table_material) == table
    assert [item.tint[0] for item in items] == pytest.approx(tints, abs=1e-6)
    assert scene.table_tint[2] == pytest.approx(table_tint, abs=1e-6)
    assert scene.light.direction == pytest.approx(light, abs=1e-6)
    assert [item.scale for item in scene.objects] == pytest.approx(scales, abs=1e-6)
