"""Small models of one feature each, and generated ones."""

# ruff: noqa: E501

import numpy as np

FLOOR = '<geom name="floor" type="plane" size="5 5 1" friction="0.8"/>'
# Every model needs something to control; this arm stands apart.
ARM = '<body pos="9 9 9"><joint name="m"/><geom size=".1" pos=".1 0 0" contype="0" conaffinity="0"/></body>'
MOTOR = '<motor joint="m" ctrlrange="-1 1"/>'


def model(world: str, actuators: str = MOTOR, option: str = "", more: str = "") -> str:
    """The MJCF of these parts."""
    return (
        f"<mujoco><option {option}/><worldbody>{world}</worldbody>{more}"
        f"<actuator>{actuators}</actuator></mujoco>"
    )


def on_the_floor(geom: str, floor: str = FLOOR) -> str:
    """A free body with one geom above the floor."""
    return model(f'{floor}<body pos="0 0 .3"><freejoint/><geom {geom}/></body>{ARM}')


TOUCHING = {
    "sphere": on_the_floor('type="sphere" size=".1"'),
    "capsule": on_the_floor('type="capsule" size=".1 .2"'),
    "box": on_the_floor('type="box" size=".1 .2 .15"'),
    "cylinder": on_the_floor('type="cylinder" size=".06 .1"'),
    "ellipsoid": on_the_floor('type="ellipsoid" size=".05 .08 .1"'),
    "without friction": on_the_floor(
        'type="sphere" size=".1" condim="1"', FLOOR.replace("/>", ' condim="1"/>')
    ),
    "tilted plane": on_the_floor('type="box" size=".1 .2 .15"', FLOOR.replace("/>", ' euler="10 20 0"/>')),
    "priority": on_the_floor('type="sphere" size=".1" priority="2" solref=".05 .7" solimp=".5 .8 .02 .3 3"'),
    "stiffness and damping": on_the_floor(
        'type="capsule" size=".1 .2" solref="-900 -30"', FLOOR.replace("/>", ' solref="-500 -20"/>')
    ),
    "margin and gap": on_the_floor(
        'type="sphere" size=".1" margin=".03" gap=".01"', FLOOR.replace("/>", ' margin=".02"/>')
    ),
    "a cart above the floor": model(
        f'{FLOOR}<body pos="0 0 .6"><joint name="m" type="slide" axis="1 0 0"/><geom type="capsule" size=".05 .15"/>'
        '<body><joint type="hinge" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 .4" size=".04"/></body></body>'
    ),
    "a sledge in the floor": model(
        f'{FLOOR}<body pos="0 0 .045"><joint name="m" type="slide" axis="1 0 0"/><geom type="sphere" size=".05"/></body>'
    ),
    "a wheel on a sledge": model(
        '<body pos="0 0 1"><joint name="m" type="slide" axis="0 1 0"/><geom type="sphere" size=".1"/></body>'
        f'{FLOOR}<body pos=".15 0 1"><joint axis="1 0 0"/><geom type="sphere" size=".1"/></body>'
    ),
    "crossing capsules": model(
        '<body pos="0 0 1"><joint name="m" axis="0 1 0" damping=".1"/>'
        '<geom type="capsule" fromto="0 0 -.3 0 0 .3" size=".03"/></body>'
        '<body pos=".15 0 1"><joint type="slide" axis="1 0 0" damping=".1"/><joint axis="0 1 0"/>'
        '<geom type="capsule" fromto="0 0 -.3 0 0 .4" size=".04"/></body>'
    ),
    "two trees": model(
        f'{FLOOR}<geom name="post" type="capsule" fromto="1 0 0 1 0 1" size=".05"/>'
        '<body pos="0 0 .4"><freejoint/><geom type="sphere" size=".1"/>'
        '<body pos=".15 0 0"><joint name="m" axis="0 1 0" damping=".2" armature=".01"/>'
        '<geom type="capsule" fromto="0 0 0 .3 0 0" size=".04"/></body></body>'
        '<body pos="0.2 0.1 .7"><freejoint/><geom type="capsule" size=".08 .2" euler="60 20 0" condim="1"/></body>'
        '<body pos="0.8 0.1 .3"><joint type="slide" axis="1 0 0"/><joint axis="0 1 0"/>'
        '<geom type="capsule" size=".08 .2" euler="60 20 0" solmix="2"/></body>'
    ),
}


def rubbing(xml: str, cone: str, condim: int) -> str:
    """The same with such cones and that many dimensions of a contact, the coefficients of all of them of some size."""
    changed = xml.replace("<option ", f'<option cone="{cone}" impratio="3" ', 1)
    default = f'<default><geom condim="{condim}" friction=".9 .04 .03"/></default>'
    return changed.replace("<worldbody>", default + "<worldbody>", 1)


FRICTION = {
    f"{name}, {cone}, condim {condim}": rubbing(TOUCHING[name], cone, condim)
    for name, cone, condim in (
        ("sphere", "elliptic", 3),
        ("capsule", "elliptic", 4),
        ("capsule", "pyramidal", 6),
        ("box", "elliptic", 3),
        ("cylinder", "pyramidal", 4),
        ("ellipsoid", "elliptic", 6),
    )
} | {
    "elliptic, without friction": rubbing(TOUCHING["without friction"], "elliptic", 1),
    "elliptic, planar": model(
        f'{FLOOR}<body pos="0 0 .1"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>'
        '<joint name="m" axis="0 1 0" frictionloss=".1" range="-50 50"/><geom type="capsule" size=".05 .2" euler="0 70 0"/></body>',
        option='cone="elliptic" impratio="2"',
    ),
}


def _leg(x: float, y: float) -> str:
    joint = 'axis="0 1 0" armature=".01" damping="2" frictionloss=".2"'
    return (
        f'<body pos="{x} {y} 0"><joint {joint}/><geom type="box" size=".1 .012 .017" pos="0 0 -.1"/>'
        f'<body pos="0 0 -.2"><joint name="knee{x}" {joint}/><geom type="cylinder" size=".012 .06" pos="0 0 -.06"/>'
        '<geom size=".022" pos="0 0 -.2"/></body></body>'
    )


TWO_FEET = """<mujoco model="two feet"><worldbody><geom type="plane" size="1 1 1"/>
<body name="trunk" pos="0 0 .25"><freejoint/><geom type="sphere" size=".05" contype="0" conaffinity="0"/>
<body pos="0 .3 0"><joint name="left" axis="0 1 0"/><geom type="sphere" size=".05" pos="0 0 -.2" condim="{condim}"/></body>
<body pos="0 -.3 0"><joint name="right" axis="0 1 0"/><geom type="sphere" size=".05" pos="0 0 -.2"/></body></body>
</worldbody><actuator><motor joint="left" ctrlrange="-1 1"/><motor joint="right" ctrlrange="-1 1"/></actuator></mujoco>"""

LEGGED = model(
    f'{FLOOR}<body name="trunk" pos="0 0 .4"><freejoint/><geom type="box" size=".19 .05 .06" mass="7"/>{_leg(0.2, 0.1)}'
    f"{_leg(-0.2, -0.1)}</body>",
    "".join(f'<motor joint="knee{x}" ctrlrange="-20 20"/>' for x in (0.2, -0.2)),
    option='impratio="100"',
    more='<keyframe><key name="low" qpos="0 0 .27 1 0 0 0 .9 -1.8 .9 -1.8"/><key qpos="0 0 1 1 0 0 0 0 0 0 0"/></keyframe>',
)
"""Legs with boxes whose contacts are so stiff along the ground that full Newton steps go round in circles."""

JOINTS = {
    "dry friction": model(
        '<body><joint name="m" frictionloss="0.3" damping=".1"/><geom size=".1" pos=".3 0 0"/><body pos=".5 0 0">'
        '<joint type="slide" axis="1 1 0" frictionloss="0.7" range="-.1 .1"/><geom size=".1"/></body></body>'
    ),
    "limits": model(
        '<body><joint name="m" range="-30 20" margin=".05" solreflimit="-400 -9"/><geom size=".1" pos=".3 0 0"/>'
        '<body pos=".5 0 0"><joint range="-5 5" solimplimit="0 .8 .03"/><geom size=".1" pos="0 .2 0"/></body></body>'
    ),
    "ball joints": model(
        f'{ARM}<body pos="0 0 1"><joint type="ball" damping=".05" pos=".1 0 0"/><geom size=".1" pos="0 0 .3"/>'
        '<body pos="0 0 .5"><joint type="ball"/><geom type="box" size=".1 .2 .05" pos=".1 .1 .1"/></body></body>'
    ),
    "springs and gravity compensation": model(
        '<body gravcomp=".4" pos="0 0 1"><joint name="m" stiffness="3" springref="20" ref="10"/><geom size=".1" pos=".3 0 0"/>'
        '<body gravcomp="1.5" pos=".5 0 0"><joint type="slide" axis="1 2 0" stiffness="9" armature=".2"/>'
        '<geom size=".1"/></body></body>'
    ),
    "actuators": model(
        '<body><joint name="m" axis="0 1 0" actuatorfrcrange="-3 3" damping=".2"/><geom size=".1" pos=".3 0 0"/><body pos=".5 0 0">'
        '<joint name="n" type="slide" axis="1 1 0"/><geom size=".1"/></body></body>',
        '<position joint="m" kp="20" kv="2" ctrlrange="-1 1" forcerange="-5 5"/>'
        '<velocity joint="n" kv="3" ctrlrange="-1 1" gear="2"/>'
        '<general joint="n" gainprm="2 .1 .3" gaintype="affine" biastype="affine" biasprm=".1 -.2 -.3" ctrlrange="-1 2"/>',
        'integrator="implicitfast" timestep="0.005"',
    ),
    "no implicit damping": model(
        '<body><joint name="m" damping="2"/><geom size=".1" pos=".3 0 0"/></body>',
        option='timestep="0.01"',
    ).replace('timestep="0.01"/>', 'timestep="0.01"><flag eulerdamp="disable"/></option>'),
    "disabled": model(
        f'{FLOOR}<body pos="0 0 .05"><joint name="m" type="slide" axis="0 0 1" range="0 .1" stiffness="5" damping="1"/>'
        '<joint type="hinge" frictionloss=".1"/><geom size=".1" pos=".02 0 0"/></body>',
        option='timestep="0.01"',
    ).replace(
        'timestep="0.01"/>',
        'timestep="0.01"><flag contact="disable" spring="disable" gravity="disable" frictionloss="disable"/></option>',
    ),
}


_LOOP = (
    '<body name="a" pos="0 0 1"><freejoint/><geom size=".1" pos=".1 0 .05"/><site name="s" pos=".1 .2 0" euler="20 30 0"/></body>'
    '<body name="b" pos=".5 0 1" euler="10 20 30"><joint name="m" axis="0 1 0"/><geom size=".1" pos=".2 0 0"/>'
    '<site name="t" pos="0 0 .1" euler="0 50 10"/><body name="c" pos=".3 0 0"><joint name="n" type="ball"/>'
    '<geom size=".08" pos=".1 .1 0"/><body name="d" pos="0 .2 0"><joint name="o" type="slide" axis="1 1 0" ref=".1" range="-.1 .3"/>'
    '<geom size=".05"/></body></body></body>'
)

EQUALITY = {
    name: model(_LOOP, more=f"<equality>{xml}</equality>")
    for name, xml in {
        "connect trees": '<connect body1="a" body2="c" anchor=".1 0 .2"/>',
        "connect world": '<connect body1="d" anchor=".1 0 .2" solimp=".5 .9 .1"/>',
        "connect along a chain": '<connect body1="b" body2="d" anchor=".1 0 .2"/>',
        "connect sites": '<connect site1="s" site2="t"/>',
        "weld trees": '<weld body1="a" body2="c" torquescale=".5"/>',
        "weld along a chain": '<weld body1="d" body2="b" torquescale="2" anchor=".1 .2 .3"/>',
        "weld to the world": '<weld body1="a" relpose="0 0 .2 1 .1 0 .1"/>',
        "weld sites": '<weld site1="s" site2="t" solref="-500 -20"/>',
        "joints": '<joint joint1="m" joint2="o" polycoef=".1 .5 .3 -.4 .2"/>',
        "joint at a constant": '<joint joint1="m" polycoef=".3 1 0 0 0"/>',
        "not active": '<connect body1="a" body2="c" anchor=".1 0 .2" active="false"/>',
    }.items()
} | {
    "weld beside elliptic contact": rubbing(
        model(
            f'{FLOOR}<body name="a" pos="0 0 .1"><freejoint/><geom size=".1"/></body><body name="b" pos=".3 0 .1">'
            '<freejoint/><geom size=".1"/></body><body pos="0 1 1"><joint name="m"/><geom size=".1" pos=".2 0 0"/></body>',
            more='<equality><weld body1="a" body2="b"/></equality>',
        ),
        "elliptic",
        3,
    ),
}


def generated(seed: int, depth: int = 1) -> str:
    """A random robot: one or two trees of random joints, geoms, inertias, limits, frictions and actuators above a floor.

    Cones, ``condim`` and equality constraints are random too.  ``depth`` 2 gives robots of up to 30 velocities.
    """
    rng = np.random.default_rng(seed)
    joints: list[str] = []  # names of hinges and slides
    bodies: list[str] = []

    def numbers(values: np.ndarray) -> str:
        return " ".join(f"{v:.4f}" for v in np.atleast_1d(values))

    def sometimes(share: float, text: str) -> str:
        return text if rng.random() < share else ""

    def joint() -> str:
        name, kind = f"j{len(joints)}", rng.choice(["hinge", "slide"])
        joints.append(name)
        bounds = "-40 50" if kind == "hinge" else "-.1 .15"
        return (
            f'<joint name="{name}" type="{kind}" axis="{numbers(rng.normal(size=3))}" pos="{numbers(rng.normal(size=3) * 0.05)}" '
            f'damping="{rng.uniform(0, 0.5):.3f}" armature="{rng.uniform(0, 0.05):.3f}" stiffness="{rng.choice([0, 2])}" '
            + sometimes(0.5, f'range="{bounds}" margin="{rng.choice([0, 0.02])}" ')
            + sometimes(0.3, f'frictionloss="{rng.uniform(0.05, 0.5):.3f}" ')
            + sometimes(0.2, f'actuatorfrcrange="-{rng.uniform(0.5, 2):.2f} 1" ')
            + sometimes(0.2, f'solreflimit="{rng.uniform(0.01, 0.1):.3f} {rng.uniform(0.5, 1.5):.2f}" ')
            + "/>"
        )

    def geom() -> str:
        kind = rng.choice(["sphere", "capsule", "sphere", "capsule", "box", "ellipsoid"])
        sizes = {"sphere": 1, "capsule": 2}.get(kind, 3)
        # Boxes and ellipsoids touch planes only: of the others some touch each other.
        affinity = rng.choice([0, 1]) if sizes < 3 else 0
        return (
            f'<geom type="{kind}" size="{numbers(rng.uniform(0.04, 0.12, sizes))}" pos="{numbers(rng.normal(size=3) * 0.05)}" '
            f'euler="{numbers(rng.uniform(-90, 90, 3))}" condim="{rng.choice([1, 3, 3, 4, 6])}" '
            f'friction="{rng.uniform(0.3, 1.5):.2f} {rng.uniform(0.005, 0.05):.3f} {rng.uniform(0.001, 0.02):.3f}" '
            f'contype="{1 if sizes < 3 else 2}" conaffinity="{affinity}" density="{rng.uniform(200, 3000):.0f}" '
            + sometimes(0.2, f'solimp=".{rng.integers(1, 9)} .95 .01" ')
            + sometimes(0.2, f'solref="{rng.uniform(0.01, 0.06):.3f} {rng.uniform(0.6, 1.3):.2f}" ')
            + sometimes(0.2, 'margin=".01" ')
            + sometimes(0.2, f'priority="{rng.integers(0, 2)}" ')
            + "/>"
        )

    def body(level: int) -> str:
        kind = rng.integers(0, 3) if level == 0 else rng.choice([1, 2, 2, 2])
        held = ("<freejoint/>", '<joint type="ball" damping=".02"/>')[kind] if kind < 2 else joint()
        if kind == 2 and rng.random() < 0.3:
            held += joint()
        name = f"b{len(bodies)}"
        bodies.append(name)
        children = (
            "".join(body(level + 1) for _ in range(rng.integers(0, depth + 1))) if level < depth else ""
        )
        place = rng.normal(size=3) * 0.2 + (0, 0, 0.25 if level == 0 else 0)
        weight = sometimes(0.1, f' gravcomp="{rng.uniform(0, 1):.2f}"')
        return f'<body name="{name}" pos="{numbers(place)}" euler="{numbers(rng.uniform(-180, 180, 3))}"{weight}>{held}{geom()}{children}</body>'

    trees = "".join(body(0) for _ in range(rng.choice([1, 1, depth])))
    driven = list(rng.permutation(joints)[:3]) or ["m"]
    actuators = [
        rng.choice(
            [
                f'<motor joint="{name}" gear="{rng.uniform(0.5, 3):.2f}" ctrlrange="-1 1"/>',
                f'<position joint="{name}" kp="{rng.uniform(1, 20):.2f}" kv=".3" ctrlrange="-1 1" forcerange="-2 3"/>',
                f'<velocity joint="{name}" kv="{rng.uniform(0.1, 1):.2f}" ctrlrange="-1 1"/>',
            ]
        )
        for name in driven
    ]
    equality = ""
    if rng.random() < 0.2:
        kinds = [
            f'<{kind} body1="{rng.choice(bodies)}" {extra}/>'
            for kind, extra in (("connect", 'anchor=".1 0 0"'), ("weld", ""))
        ]
        kinds += [f'<joint joint1="{rng.choice(joints)}" polycoef=".1 0 0 0 0"/>'] if joints else []
        equality = f"<equality>{rng.choice(kinds)}</equality>"
    integrator = rng.choice(["Euler", "RK4", "implicitfast"])
    if integrator == "implicitfast" and "<freejoint/>" in trees:
        integrator = "Euler"  # of free bodies without joints it is refused
    option = f'integrator="{integrator}" timestep="0.004" cone="{rng.choice(["pyramidal", "elliptic"])}" impratio="{rng.choice([1, 4])}"'
    floor = FLOOR.replace("/>", ' contype="3" conaffinity="3"/>')
    return model(floor + trees + ARM, "".join(actuators), option, equality)
