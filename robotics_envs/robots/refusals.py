"""What a file may hold that is not simulated here: everything is named, with what to do; nothing is passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from robotics_envs.robots.compiling import mujoco

_HARMLESS_DISABLED = ("WARMSTART", "MIDPHASE", "NATIVECCD", "SENSOR", "AUTORESET", "ISLAND", "MULTICCD")
_DISABLED_HERE = (
    *("CONSTRAINT", "CONTACT", "LIMIT", "FRICTIONLOSS", "GRAVITY", "EULERDAMP", "FILTERPARENT", "REFSAFE"),
    *("DAMPER", "SPRING", "CLAMPCTRL", "ACTUATION", "EQUALITY"),
)
_HARMLESS_ENABLED = ("ENERGY", "FWDINV")


def refusals(model: Any) -> list[str]:
    """One entry for every thing in an ``MjModel`` that is not simulated here."""
    library = mujoco()
    return [
        *_options(library, model),
        *_whole_model(library, model),
        *_joints(library, model),
        *_actuators(library, model),
        *_tendons(library, model),
    ]


def _named(model: Any, kind: str, which: Iterable[int]) -> str:
    names = [getattr(model, kind)(k).name or f"number {k}" for k in which]
    return ", ".join(names)


def _options(library: Any, model: Any) -> list[str]:
    found = []
    integrators = {
        int(getattr(library.mjtIntegrator, f"mjINT_{n}")) for n in ("EULER", "RK4", "IMPLICITFAST")
    }
    option = model.opt
    if option.integrator not in integrators:
        name = library.mjtIntegrator(option.integrator).name
        found.append(f'the integrator {name}: set integrator="implicitfast", "Euler" or "RK4" in <option>')
    if option.density or option.viscosity or any(option.wind):
        found.append("a fluid: remove density, viscosity and wind from <option>")
    if option.noslip_iterations:
        found.append('the no-slip solver: set noslip_iterations="0" in <option>')
    if option.disableactuator:
        found.append("groups of actuators that are disabled: remove actuatorgroupdisable from <option>")
    for name, bit in _bits(library.mjtDisableBit, "mjDSBL_"):
        if option.disableflags & bit and name not in _HARMLESS_DISABLED + _DISABLED_HERE:
            found.append(f"the flag {name.lower()} disabled: remove it from <flag>")
    for name, bit in _bits(library.mjtEnableBit, "mjENBL_"):
        if option.enableflags & bit and name not in _HARMLESS_ENABLED:
            found.append(f"the flag {name.lower()} enabled: remove it from <flag>")
    return found


def _values(kind: Any, *names: str) -> set[int]:
    return {int(getattr(kind, name)) for name in names}


def _bits(kind: Any, start: str) -> list[tuple[str, int]]:
    return [(n.removeprefix(start), int(getattr(kind, n))) for n in dir(kind) if n.startswith(start)]


def _whole_model(library: Any, model: Any) -> list[str]:
    found = []
    for attribute, what, advice in (
        ("nmocap", "mocap bodies", "fix them to the world"),
        ("nflex", "flexible bodies", "remove them"),
        ("nplugin", "plugins", "remove them"),
        ("nuserdata", "user data", "remove nuserdata from <size>"),
    ):
        if getattr(model, attribute, 0):
            found.append(f"{getattr(model, attribute)} {what}: {advice}")
    known = _values(library.mjtEq, "mjEQ_CONNECT", "mjEQ_WELD", "mjEQ_JOINT")
    other = [k for k in range(model.neq) if int(model.eq_type[k]) not in known]
    if other:
        found.append(
            f"equality constraints of tendons and flexible bodies ({_named(model, 'equality', other)}): remove them, "
            "or use connect, weld or joint"
        )
    if model.npair:
        found.append(
            f"{model.npair} explicit contact pairs: remove <pair> and set contype and conaffinity instead"
        )
    for attribute, what in (
        ("geom_surfacevel", "surfaces that move"),
        ("geom_adhesion", "surfaces that stick"),
    ):
        values = getattr(model, attribute, None)
        if values is not None and values.any():
            rows = values.reshape(model.ngeom, -1).any(1).nonzero()[0]
            found.append(f"{what} ({_named(model, 'geom', rows)}): remove {attribute.removeprefix('geom_')}")
    return found


def _joints(library: Any, model: Any) -> list[str]:
    found = []
    kinds = library.mjtJoint
    hinges = _values(kinds, "mjJNT_HINGE", "mjJNT_SLIDE")
    simple = [int(t) in hinges for t in model.jnt_type]
    for what, holds, advice in (
        ("springs of ball and free joints", model.jnt_stiffness != 0, "set stiffness to 0"),
        ("ranges of ball joints", model.jnt_limited != 0, "remove range, or use three hinges"),
    ):
        bad = [j for j in range(model.njnt) if holds[j] and not simple[j]]
        if bad:
            found.append(f"{what} ({_named(model, 'joint', bad)}): {advice}")
    if int(model.opt.integrator) == int(library.mjtIntegrator.mjINT_IMPLICITFAST):
        free = [
            j
            for j in range(model.njnt)
            if int(model.jnt_type[j]) == int(kinds.mjJNT_FREE)
            and sum(int(t) == int(model.dof_treeid[model.jnt_dofadr[j]]) for t in model.dof_treeid) == 6
        ]
        if free:
            found.append(
                f"the integrator implicitfast with free bodies that carry no joint ({_named(model, 'joint', free)}), "
                'whose spin it integrates in a way of its own: set integrator="Euler" or "RK4" in <option>'
            )
    for attribute, what in (
        ("jnt_stiffnesspoly", "springs that are not linear"),
        ("dof_dampingpoly", "dampers that are not linear"),
    ):
        values = getattr(model, attribute, None)
        if values is not None and values.any():
            owner = range(model.njnt) if attribute.startswith("jnt") else model.dof_jntid
            rows = values.reshape(len(values), -1).any(1).nonzero()[0]
            found.append(
                f"{what} ({_named(model, 'joint', sorted({int(owner[r]) for r in rows}))}): make them linear"
            )
    if model.jnt_actgravcomp.any():
        bad = [j for j in range(model.njnt) if model.jnt_actgravcomp[j] and model.jnt_actfrclimited[j]]
        if bad:
            found.append(
                f"gravity compensation within the force range of joints ({_named(model, 'joint', bad)}): "
                "remove actuatorgravcomp"
            )
    return found


def _actuators(library: Any, model: Any) -> list[str]:
    found: list[str] = []
    if not model.nu:
        return found
    joint = _values(library.mjtTrn, "mjTRN_JOINT", "mjTRN_JOINTINPARENT")
    hinges = _values(library.mjtJoint, "mjJNT_HINGE", "mjJNT_SLIDE")
    if getattr(model, "nactuator", model.nu) != model.nu:
        found.append("actuators with several controls: use one actuator for each")
        return found

    def all_where(what: str, advice: str, holds: Callable[[int], bool]) -> None:
        bad = [k for k in range(model.nu) if holds(k)]
        if bad:
            found.append(f"{what} ({_named(model, 'actuator', bad)}): {advice}")

    all_where(
        "actuators on tendons, sites, bodies or sliders with cranks",
        "let them act on joints",
        lambda k: int(model.actuator_trntype[k]) not in joint,
    )
    all_where(
        "actuators on ball and free joints",
        "use hinges",
        lambda k: (
            int(model.actuator_trntype[k]) in joint
            and int(model.jnt_type[model.actuator_trnid[k, 0]]) not in hinges
        ),
    )
    all_where(
        "actuators with a state (activation, muscles, filters)",
        'set dyntype="none"',
        lambda k: int(model.actuator_dyntype[k]) != int(library.mjtDyn.mjDYN_NONE),
    )
    gains = _values(library.mjtGain, "mjGAIN_FIXED", "mjGAIN_AFFINE")
    biases = _values(library.mjtBias, "mjBIAS_NONE", "mjBIAS_AFFINE")
    all_where(
        "actuators whose force is not affine in length and velocity",
        "use motor, position, velocity, or general with fixed or affine gain and bias",
        lambda k: (
            int(model.actuator_gaintype[k]) not in gains or int(model.actuator_biastype[k]) not in biases
        ),
    )
    to_joint = "give it to the joint, or remove it"
    for attribute, what, advice in (
        ("actuator_damping", "damping of actuators", to_joint),
        ("actuator_dampingpoly", "damping of actuators that is not linear", to_joint),
        ("actuator_armature", "armature of actuators", to_joint),
        ("actuator_delay", "actuators with a delay", "remove the delay"),
    ):
        values = getattr(model, attribute, None)
        if values is not None and values.any():
            all_where(what, advice, values.reshape(model.nu, -1).any(1).__getitem__)
    unlimited = [k for k in range(model.nu) if not model.actuator_ctrllimited[k]]
    if unlimited:
        found.append(
            f"actuators without a range of their controls ({_named(model, 'actuator', unlimited)}): set ctrlrange, "
            "or control_range=(LOW, HIGH) for all of them"
        )
    return found


def _tendons(library: Any, model: Any) -> list[str]:
    acts = []
    for k in range(model.ntendon):
        if (
            model.tendon_limited[k]
            or any(
                getattr(model, f"tendon_{name}").reshape(model.ntendon, -1)[k].any()
                for name in (
                    "stiffness",
                    "stiffnesspoly",
                    "damping",
                    "dampingpoly",
                    "frictionloss",
                    "armature",
                )
                if hasattr(model, f"tendon_{name}")
            )
            or getattr(model, "tendon_actfrclimited", [0] * model.ntendon)[k]
        ):
            acts.append(k)
    if not acts:
        return []
    return [
        f"tendons that act ({_named(model, 'tendon', acts)}): remove their range, spring, damper or friction"
    ]
