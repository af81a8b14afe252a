"""Solids in pictures: closed surfaces, what is in front, shading, ground and shadows."""

import math

import numpy as np
import pytest

from robotics_envs.drawing import BACKGROUND, COLOURS, Circle, Line, Solid, View, flatten, rasterise
from robotics_envs.solids import SHADOW, quaternion, shaded, surface

SIZES = {
    "sphere": (0.3,),
    "capsule": (0.1, 0.4),
    "cylinder": (0.2, 0.3),
    "ellipsoid": (0.1, 0.2, 0.4),
    "box": (0.1, 0.2, 0.5),
}
VOLUMES = {
    "sphere": 4 / 3 * math.pi * 0.3**3,
    "capsule": math.pi * 0.1**2 * (4 / 3 * 0.1 + 0.8),
    "cylinder": math.pi * 0.2**2 * 0.6,
    "ellipsoid": 4 / 3 * math.pi * 0.1 * 0.2 * 0.4,
    "box": 8 * 0.1 * 0.2 * 0.5,
}
SIDE = View((-1.0, -1.0), (1.0, 1.0), azimuth=-90.0, elevation=0.0)
"""x to the right, z up, seen from -y."""
ABOVE = View((-1.0, -1.0), (1.0, 1.0), azimuth=-90.0, elevation=90.0)


def turned(seed):
    """A random rotation matrix."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def rgb(colour):
    return np.array(list(bytes.fromhex(colour.lstrip("#"))))


def at(image, right, up, view=SIDE):
    height, width, _ = image.shape
    scale = min(width / (view.high[0] - view.low[0]), height / (view.high[1] - view.low[1]))
    return image[int(height / 2 - scale * up), int(width / 2 + scale * right)].astype(int)


def is_of(pixel, colour):
    """Whether a pixel is a shade of a colour of the palette: its channels stand in the same proportion."""
    wanted = rgb(COLOURS[colour])
    return np.allclose(pixel / pixel.max(), wanted / wanted.max(), atol=0.08)


@pytest.mark.parametrize("form", SIZES)
def test_surfaces_are_closed_and_face_outwards(form):
    shell = surface(form, SIZES[form])
    # The divergence theorem: a sixth of a determinant for each triangle of a fan.
    volume = sum(
        np.linalg.det(shell.vertices[[face[0], face[k], face[k + 1]]]) / 6
        for face in shell.faces
        for k in range(1, len(face) - 1)
    )
    assert 0.93 * VOLUMES[form] < volume < VOLUMES[form] * (1 + 1e-12)
    assert (np.einsum("fi,fi->f", shell.normals, shell.centres) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(shell.normals, axis=1), 1.0)
    # Every edge of a closed surface belongs to two faces, once in each direction.
    edges = set()
    for face in shell.faces:
        for a, b in zip(face, face[1:] + face[:1], strict=True):
            edge = tuple(np.round(shell.vertices[a], 9)), tuple(np.round(shell.vertices[b], 9))
            assert edge not in edges
            edges.add(edge)
    assert {(b, a) for a, b in edges} == edges


@pytest.mark.parametrize("form", SIZES)
def test_a_solid_covers_its_outline(form):
    """Of points of the picture inside the projected surface all are drawn, of those outside none."""
    rotation, position = turned(1), np.array([0.1, 0.3, -0.2])
    image = rasterise([Solid(form, SIZES[form], position, rotation)], SIDE, 200)
    drawn = (image != rgb(BACKGROUND)).any(-1)
    corners = surface(form, SIZES[form]).vertices @ rotation.T + position
    rows, columns = np.nonzero(drawn)
    right, up = (columns + 0.5) / 100 - 1, 1 - (rows + 0.5) / 100
    assert right.min() == pytest.approx(corners[:, 0].min(), abs=0.02)
    assert right.max() == pytest.approx(corners[:, 0].max(), abs=0.02)
    assert up.min() == pytest.approx(corners[:, 2].min(), abs=0.02)
    assert up.max() == pytest.approx(corners[:, 2].max(), abs=0.02)
    assert at(image, 0.1, -0.2).tolist() != rgb(BACKGROUND).tolist()


def test_the_nearer_solid_is_in_front_whatever_the_order():
    near, far = Solid("sphere", (0.3,), (0, -1, 0), colour="limb"), Solid("box", (0.3, 0.3, 0.3), (0, 1, 0))
    for shapes in ([near, far], [far, near]):
        image = rasterise(shapes, SIDE, 100)
        assert is_of(at(image, 0, 0), "limb")
        assert is_of(at(image, 0.28, 0.28), "body")
        back = rasterise(shapes, View((-1, -1), (1, 1), azimuth=90.0, elevation=0.0), 100)
        assert is_of(at(back, 0, 0), "body")


def test_flat_shapes_take_part_in_the_order_and_those_of_the_picture_are_in_front():
    ball = Solid("sphere", (0.3,))
    mark = Circle((0.0, 1.0, 0.0), 0.1, "target")
    assert is_of(at(rasterise([mark, ball], SIDE, 100), 0, 0), "body")
    assert is_of(at(rasterise([Circle((0.0, -1.0, 0.0), 0.1, "target"), ball], SIDE, 100), 0, 0), "target")
    assert is_of(at(rasterise([Line([(-0.1, 0.0), (0.1, 0.0)], "hot", 0.1), ball], SIDE, 100), 0, 0), "hot")


def test_of_two_in_one_place_the_one_behind_is_hidden():
    one, other = (
        Solid("capsule", (0.1, 0.3), colour="limb"),
        Solid("capsule", (0.1, 0.3), colour="other_limb", behind=0.2),
    )
    for shapes in ([one, other], [other, one]):
        image = rasterise(shapes, SIDE, 100)
        assert not any(
            is_of(pixel, "other_limb") for row in image.astype(int) for pixel in row if pixel.max()
        )


def test_faces_toward_the_light_are_brighter():
    image = rasterise([Solid("sphere", (0.8,))], SIDE, 100)
    bright, dark = at(image, -0.3, 0.4), at(image, 0.4, -0.5)
    assert bright.sum() > 1.3 * dark.sum()
    assert shaded("#808080", 0.5) == "#404040"
    assert shaded("#808080", 1.1) == "#8d8d8d"


def test_the_ground_has_no_end_a_grid_that_stands_still_and_shadows():
    ground, ball = Solid("plane", colour="faint"), Solid("sphere", (0.1,), (0.5, 0.0, 0.4))
    image = rasterise([ground, ball], ABOVE, 100)
    assert is_of(at(image, 0.5, 0.0, ABOVE), "body")
    slanted = View((-1.0, -1.0), (1.0, 1.0), azimuth=-90.0, elevation=30.0)
    shadow = at(rasterise([ground, ball], slanted, 400), 0.5, 0.0, slanted)
    floor = at(rasterise([ground], slanted, 400), 0.47, 0.03, slanted)
    assert shadow.sum() < 0.9 * floor.sum()
    # The camera goes a metre along; the ground is still there, with the lines where they were in the world.
    moved = View((-1.0, -1.0), (1.0, 1.0), azimuth=-90.0, elevation=90.0, focus=(7.0, 0.0, 0.0))
    lines = [
        {round(x + view.focus[0], 6) for shape in flatten([ground], view) if shape["kind"] == "line" for x in
         {round(p[0], 6) for p in shape["points"]} if shape["points"][0][0] == pytest.approx(shape["points"][1][0])}
        for view in (ABOVE, moved)
    ]  # fmt: skip
    assert len(lines[0]) > 4
    step = min(np.diff(sorted(lines[0])))
    for places in lines:
        assert np.allclose(np.array(sorted(places)) / step, np.round(np.array(sorted(places)) / step))


def test_what_is_below_the_ground_or_far_off_casts_no_shadow():
    for place in ((0.0, 0.0, -0.5), (30.0, 0.0, 0.5)):
        drawn = flatten([Solid("plane", colour="ground"), Solid("sphere", (0.1,), place)], ABOVE)
        assert SHADOW not in {shape.get("shade") for shape in drawn if shape["colour"] == "ground"}


def test_from_below_the_ground_is_a_grid_only():
    below = View((-1.0, -1.0), (1.0, 1.0), azimuth=-90.0, elevation=-20.0)
    assert {s["kind"] for s in flatten([Solid("plane", colour="faint")], below)} == {"line"}


@pytest.mark.parametrize("seed", range(20))
def test_quaternions_turn_as_the_matrix_does(seed):
    matrix = (
        turned(seed) if seed > 2 else np.diag([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]][seed]).astype(float)
    )
    w, x, y, z = quaternion(matrix)
    assert w >= 0
    again = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    np.testing.assert_allclose(again, matrix, atol=1e-12)


@pytest.mark.parametrize(
    ("solid", "complaint"),
    [
        (Solid("cone", (1.0, 1.0)), "unknown form 'cone' of a solid; known: plane, sphere"),
        (Solid("capsule", (0.1,)), r"a capsule needs 2 sizes above 0, got \(0.1,\)"),
        (Solid("box", (0.1, 0.0, 1.0)), "a box needs 3 sizes above 0"),
        (Solid("sphere", (0.1,), (0, 0)), "a sphere has a position of 3 and a rotation of 3 x 3 numbers"),
        (Solid("sphere", (0.1,), (0, 0, math.nan)), "a sphere has a pose that is not finite"),
        (Solid("sphere", (0.1,), colour="pink"), "unknown colour 'pink'"),
    ],
)
def test_what_cannot_be_drawn_is_named(solid, complaint):
    with pytest.raises(ValueError, match=complaint):
        flatten([solid], SIDE)
