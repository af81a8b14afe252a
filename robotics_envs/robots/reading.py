"""``read``: MuJoCo's compiled model as a :class:`RobotModel`, or one message with everything that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lazy_registry.registry import UnknownNameError, unknown
from robotics_envs.robots.compiling import RobotFileError, compiled, equality_drifts, margin, mujoco
from robotics_envs.robots.model import (
    Actuator,
    Body,
    Dof,
    Equality,
    Geom,
    Joint,
    Limit,
    Matrix,
    Options,
    Pair,
    Range,
    RobotModel,
    Softness,
    Vector,
)
from robotics_envs.robots.onset import with_onset
from robotics_envs.robots.parameters import LEAST_FRICTION, chosen
from robotics_envs.robots.refusals import refusals

_EQUALITIES: dict[int, Literal["connect", "weld", "joint"]] = {0: "connect", 1: "weld", 2: "joint"}
_JOINTS: dict[int, Literal["free", "ball", "slide", "hinge"]] = {0: "free", 1: "ball", 2: "slide", 3: "hinge"}
_GEOMS: dict[int, str] = {
    **{0: "plane", 1: "height field", 2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box"},
    **{7: "mesh", 8: "signed distance field"},
}
TOUCHING = {
    *(("plane", kind) for kind in ("sphere", "capsule", "ellipsoid", "cylinder", "box")),
    *(("sphere", "sphere"), ("sphere", "capsule"), ("capsule", "capsule")),
}
"""The kinds of geoms whose contacts are simulated."""


def read(source: str | Path, options: Options | None = None) -> RobotModel:
    """The robot of an MJCF or URDF file, or of a text that begins with ``<``.

    Raises:
        UnknownNameError: there is no such file.
        RobotFileError: MuJoCo cannot read it, or it holds what is not simulated here: the message names all of it.
    """
    options = with_onset(Options() if options is None else options)
    model = compiled(source, options)
    return _Reading(model, str(source), options).model()


class _Reading:
    def __init__(self, model: Any, source: str, options: Options) -> None:
        self.m, self.source, self.options = model, source, options
        self.library = mujoco()
        disabled = self.library.mjtDisableBit
        flags = int(model.opt.disableflags)
        self.disabled = {
            name.removeprefix("mjDSBL_")
            for name in dir(disabled)
            if name.startswith("mjDSBL_") and flags & int(getattr(disabled, name))
        }
        if "CONSTRAINT" in self.disabled:
            self.disabled |= {"CONTACT", "LIMIT", "FRICTIONLOSS"}

    def model(self) -> RobotModel:
        m = self.m
        found = refusals(m)
        pairs = [] if "CONTACT" in self.disabled else self._pairs(found)
        if found:
            listed = "".join(f"\n  - {what}" for what in found)
            raise RobotFileError(f"{self._shown()} holds what is not simulated here:{listed}")
        integrators: dict[int, Literal["Euler", "RK4", "implicitfast"]] = {
            0: "Euler",
            1: "RK4",
            3: "implicitfast",
        }
        gravity = (0.0, 0.0, 0.0) if "GRAVITY" in self.disabled else _vector(m.opt.gravity)
        geoms = [self._geom(g) for g in range(m.ngeom) if _GEOMS[int(m.geom_type[g])] in _SHAPES]
        made = RobotModel(
            name=self._name(),
            source=self.source,
            options=self.options,
            positions=int(m.nq),
            velocities=int(m.nv),
            bodies=tuple(self._body(b) for b in range(m.nbody)),
            dofs=tuple(self._dof(k) for k in range(m.nv)),
            actuators=() if "ACTUATION" in self.disabled else tuple(map(self._actuator, range(m.nu))),
            geoms=tuple(geoms),
            pairs=tuple(pairs),
            equalities=self._equalities(),
            equality_drifts=equality_drifts(),
            gravity=gravity,
            timestep=float(m.opt.timestep),
            integrator=integrators[int(m.opt.integrator)],
            cone="pyramidal" if m.opt.cone == 0 else "elliptic",
            impedance_ratio=float(m.opt.impratio),
            implicit_damping="EULERDAMP" not in self.disabled,
            shortest_time="REFSAFE" not in self.disabled,
            reference=self._reference(),
            disabled=tuple(sorted(self.disabled)),
            mujoco_version=self.library.__version__,
            mesh_boxes=tuple(
                self._mesh_box(g) for g in range(m.ngeom) if _GEOMS[int(m.geom_type[g])] == "mesh"
            ),
        )
        chosen(made)
        return made

    def _reference(self) -> tuple[float, ...]:
        m, wanted = self.m, self.options.keyframe
        if wanted is None:
            return tuple(float(x) for x in m.qpos0)
        names = [m.key(k).name for k in range(m.nkey)]
        if wanted not in names:
            raise UnknownNameError(unknown(f"keyframe of {self._shown()}", wanted, [n for n in names if n]))
        return tuple(float(x) for x in m.key_qpos[names.index(wanted)])

    def _shown(self) -> str:
        return "the text" if self.source.lstrip().startswith("<") else self.source

    def _name(self) -> str:
        """The name in the file, or the file's; MuJoCo gives models without one a name of its own."""
        given = self.m.names.split(b"\0", 1)[0].decode()
        if given not in ("", "MuJoCo Model"):
            return given
        return "robot" if self.source.lstrip().startswith("<") else Path(self.source).stem

    def _body(self, b: int) -> Body:
        m = self.m
        turned = np.array(_rotation(m.body_iquat[b]))
        inertia = turned @ np.diag(m.body_inertia[b]) @ turned.T
        inertia[np.abs(inertia) < 1e-14 * max(1e-30, float(np.abs(inertia).max()))] = 0.0
        first = int(m.body_jntadr[b])
        return Body(
            name=m.body(b).name or f"body{b}",
            parent=int(m.body_parentid[b]),
            offset=_vector(m.body_pos[b]),
            rotation=_rotation(m.body_quat[b]),
            quaternion=_quaternion(m.body_quat[b]),
            mass=float(m.body_mass[b]),
            centre=_vector(m.body_ipos[b]),
            inertia=_matrix(inertia),
            joints=tuple(self._joint(j) for j in range(first, first + int(m.body_jntnum[b]))),
            gravity_compensation=float(m.body_gravcomp[b]),
        )

    def _joint(self, j: int) -> Joint:
        m = self.m
        at, kind = int(m.jnt_qposadr[j]), _JOINTS[int(m.jnt_type[j])]
        limited = m.jnt_limited[j] and kind in ("slide", "hinge") and "LIMIT" not in self.disabled
        return Joint(
            name=m.joint(j).name or f"joint{j}",
            kind=kind,
            position=at,
            velocity=int(m.jnt_dofadr[j]),
            anchor=_vector(m.jnt_pos[j]),
            axis=_vector(m.jnt_axis[j]),
            reference=float(m.qpos0[at]),
            stiffness=0.0 if "SPRING" in self.disabled else float(np.ravel(m.jnt_stiffness[j])[0]),
            rest=float(m.qpos_spring[at]),
            limit=Limit(
                _range(m.jnt_range[j]), float(m.jnt_margin[j]), _softness(m.jnt_solref[j], m.jnt_solimp[j])
            )
            if limited
            else None,
            force_range=_range(m.jnt_actfrcrange[j]) if m.jnt_actfrclimited[j] else None,
        )

    def _dof(self, k: int) -> Dof:
        m = self.m
        return Dof(
            body=int(m.dof_bodyid[k]),
            parent=int(m.dof_parentid[k]),
            damping=0.0 if "DAMPER" in self.disabled else float(np.ravel(m.dof_damping[k])[0]),
            armature=float(m.dof_armature[k]),
            friction=0.0 if "FRICTIONLOSS" in self.disabled else float(m.dof_frictionloss[k]),
            softness=_softness(m.dof_solref[k], m.dof_solimp[k]),
            inverse_weight=float(m.dof_invweight0[k]),
        )

    def _actuator(self, k: int) -> Actuator:
        m = self.m
        j = int(m.actuator_trnid[k, 0])
        affine_gain, affine_bias = m.actuator_gaintype[k] == 1, m.actuator_biastype[k] == 1
        gain, bias = (_vector(prm[k, :3]) for prm in (m.actuator_gainprm, m.actuator_biasprm))
        clamped = m.actuator_ctrllimited[k] and "CLAMPCTRL" not in self.disabled
        return Actuator(
            name=self._actuator_name(k, j),
            joint=m.joint(j).name or f"joint{j}",
            position=int(m.jnt_qposadr[j]),
            velocity=int(m.jnt_dofadr[j]),
            gear=float(m.actuator_gear[k, 0]),
            gain=gain if affine_gain else (gain[0], 0.0, 0.0),
            bias=bias if affine_bias else (0.0, 0.0, 0.0),
            control_range=_range(m.actuator_ctrlrange[k]) if clamped else None,
            force_range=_range(m.actuator_forcerange[k]) if m.actuator_forcelimited[k] else None,
        )

    def _actuator_name(self, k: int, j: int) -> str:
        """Its name, or its joint's where it is the only one there."""
        m = self.m
        alone = sum(int(m.actuator_trnid[i, 0]) == j for i in range(m.nu)) == 1
        return m.actuator(k).name or (m.joint(j).name if alone else "") or f"actuator{k}"

    def _named(self, g: int) -> str:
        """A geom in words; one without a name by its number in the file and its body."""
        kind, body = _GEOMS[int(self.m.geom_type[g])], int(self.m.geom_bodyid[g])
        unnamed = f"geom {g} of {self.m.body(body).name or f'body {body}'}"
        return f"{self.m.geom(g).name or unnamed} ({kind})"

    def _geom(self, g: int) -> Geom:
        m = self.m
        return Geom(
            name=m.geom(g).name or f"geom{g}",
            kind=_GEOMS[int(m.geom_type[g])],  # type: ignore[arg-type]
            body=int(m.geom_bodyid[g]),
            size=_vector(m.geom_size[g]),
            offset=_vector(m.geom_pos[g]),
            rotation=_rotation(m.geom_quat[g]),
            friction=_vector(m.geom_friction[g]),
            priority=int(m.geom_priority[g]),
        )

    def _equalities(self) -> tuple[Equality, ...]:
        """Those that are active; MuJoCo changes that only if it is told to."""
        if "EQUALITY" in self.disabled or "CONSTRAINT" in self.disabled:
            return ()
        return tuple(self._equality(k) for k in range(self.m.neq) if self.m.eq_active0[k])

    def _equality(self, k: int) -> Equality:
        m, data = self.m, self.m.eq_data[k]
        first, second = int(m.eq_obj1id[k]), int(m.eq_obj2id[k])
        kind = _EQUALITIES[int(m.eq_type[k])]
        anchors: tuple[Vector, Vector] = (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
        unturned: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
        frames = unturned, unturned
        if kind == "joint":
            first, second = (int(m.jnt_dofadr[j]) if j >= 0 else -1 for j in (first, second))
            weights = [sum(float(m.dof_invweight0[d]) for d in (first, second) if d >= 0), 0.0]
        else:
            if int(m.eq_objtype[k]) == int(self.library.mjtObj.mjOBJ_SITE):
                sites = first, second
                first, second = (int(m.site_bodyid[s]) for s in sites)
                anchors = _vector(m.site_pos[sites[0]]), _vector(m.site_pos[sites[1]])
                frames = _quaternion(m.site_quat[sites[0]]), _quaternion(m.site_quat[sites[1]])
            elif kind == "connect":
                anchors = _vector(data[:3]), _vector(data[3:6])
            else:
                anchors, frames = (
                    (_vector(data[3:6]), _vector(data[:3])),
                    (_quaternion(data[6:10]), frames[1]),
                )
            weights = [sum(float(m.body_invweight0[b, i]) for b in (first, second)) for i in (0, 1)]
        return Equality(
            name=m.equality(k).name or f"equality{k}",
            kind=kind,
            first=first,
            second=second,
            anchors=anchors,
            frames=frames,
            polynomial=tuple(float(x) for x in data[:5]) if kind == "joint" else (),
            torque_scale=float(data[10]) if kind == "weld" else 0.0,
            softness=_softness(m.eq_solref[k], m.eq_solimp[k]),
            inverse_weights=(weights[0], weights[1]),
        )

    def _mesh_box(self, g: int) -> Geom:
        """The box around a mesh, along its axes."""
        geom, box = self._geom(g), np.array(self.m.geom_aabb[g])
        offset = np.array(geom.offset) + np.array(geom.rotation) @ box[:3]
        return replace(geom, kind="box", size=_vector(np.maximum(box[3:], 1e-4)), offset=_vector(offset))

    def _pairs(self, found: list[str]) -> list[Pair]:
        """The pairs of geoms that can touch; what is refused among them goes to ``found``."""
        pairs, unknown = [], []
        m = self.m
        for a in range(m.ngeom):
            for b in range(a + 1, m.ngeom):
                if not self._meet(a, b):
                    continue
                first, second = sorted((a, b), key=lambda g: (int(m.geom_type[g]), g))
                kinds = _GEOMS[int(m.geom_type[first])], _GEOMS[int(m.geom_type[second])]
                if kinds == ("plane", "plane"):
                    continue
                if kinds not in TOUCHING:
                    unknown.append((first, second))
                    continue
                pairs.append(self._pair(first, second))
        if unknown:
            moving = [m.body_weldid[m.geom_bodyid[g]] != 0 for pair in unknown for g in pair]
            meshes = any(_GEOMS[int(m.geom_type[g])] not in _SHAPES for pair in unknown for g in pair)
            advice = [
                *(['meshes="drop" lets meshes touch nothing'] if meshes else []),
                *(['self_collisions="ignore" lets the robot touch the world only'] if any(moving) else []),
                "or use spheres and capsules, which touch each other and planes; boxes, cylinders and ellipsoids "
                "touch planes",
            ]
            found.append(f"contacts between {self._listed(unknown)}: {', '.join(advice)}")
        return pairs

    def _listed(self, pairs: Sequence[tuple[int, int]]) -> str:
        most = 12
        shown = [" and ".join(self._named(g) for g in pair) for pair in pairs[:most]]
        more = f", and {len(pairs) - most} more pairs" if len(pairs) > most else ""
        return "; ".join(shown) + more

    def _meet(self, a: int, b: int) -> bool:
        """Whether MuJoCo looks for contacts of two geoms (documentation, "Collision detection", selection)."""
        m = self.m
        if not ((m.geom_contype[a] & m.geom_conaffinity[b]) or (m.geom_contype[b] & m.geom_conaffinity[a])):
            return False
        one, other = (int(m.geom_bodyid[g]) for g in (a, b))
        first, second = int(m.body_weldid[one]), int(m.body_weldid[other])
        if first == second:
            return False
        low, high = sorted((one, other))
        if any(int(s) == (low << 16) + high for s in m.exclude_signature[: m.nexclude]):
            return False
        if "FILTERPARENT" in self.disabled or not first or not second:
            return True
        parents = [int(m.body_weldid[m.body_parentid[body]]) for body in (first, second)]
        return first != parents[1] and second != parents[0]

    def _mixed(self, a: int, b: int) -> tuple[Any, Any, Vector, int]:
        """Solver parameters, coefficients of friction and condim of a contact."""
        m = self.m
        if m.geom_priority[a] != m.geom_priority[b]:
            g = a if m.geom_priority[a] > m.geom_priority[b] else b
            return m.geom_solref[g], m.geom_solimp[g], _friction(m.geom_friction[g]), int(m.geom_condim[g])
        weights = float(m.geom_solmix[a]), float(m.geom_solmix[b])
        least = 1e-15
        if min(weights) >= least:
            share = weights[0] / sum(weights)
        else:
            share = 0.5 if max(weights) < least else float(weights[0] >= least)
        if m.geom_solref[a, 0] > 0 and m.geom_solref[b, 0] > 0:
            solref = share * m.geom_solref[a] + (1 - share) * m.geom_solref[b]
        else:
            solref = np.minimum(m.geom_solref[a], m.geom_solref[b])
        solimp = share * m.geom_solimp[a] + (1 - share) * m.geom_solimp[b]
        friction = _friction(np.maximum(m.geom_friction[a], m.geom_friction[b]))
        return solref, solimp, friction, int(max(m.geom_condim[a], m.geom_condim[b]))

    def _pair(self, a: int, b: int) -> Pair:
        m = self.m
        solref, solimp, friction, condim = self._mixed(a, b)
        margins = float(m.geom_margin[a]), float(m.geom_margin[b])
        gaps = float(m.geom_gap[a]), float(m.geom_gap[b])
        weight = sum(float(m.body_invweight0[m.geom_bodyid[g], 0]) for g in (a, b))
        return Pair(
            first=self._geom(a),
            second=self._geom(b),
            dimensions=condim,  # type: ignore[arg-type]
            friction=friction,
            margin=margin(margins, gaps),
            softness=_softness(solref, solimp),
            inverse_weight=weight,
        )


_SHAPES = ("plane", "sphere", "capsule", "ellipsoid", "cylinder", "box")


def _snap(x: float) -> float:
    """A number that differs from a whole one by rounding is that whole one: then it is structure."""
    nearest = round(float(x))
    return float(nearest) if abs(x - nearest) < 1e-12 else float(x)


def _vector(x: Any) -> Vector:
    a, b, c = (_snap(v) for v in x)
    return a, b, c


def _matrix(x: Any) -> Matrix:
    a, b, c = (tuple(float(v) for v in row) for row in x)
    return a, b, c  # type: ignore[return-value]


def _quaternion(x: Any) -> tuple[float, ...]:
    return tuple(_snap(v) for v in np.asarray(x, float) / np.linalg.norm(x))


def _rotation(quaternion: Any) -> Matrix:
    w, x, y, z = np.asarray(quaternion, float) / np.linalg.norm(quaternion)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return _matrix([[_snap(v) for v in row] for row in rows])


def _friction(coefficients: Any) -> Vector:
    return _vector(np.maximum(coefficients, LEAST_FRICTION))


def _range(x: Any) -> Range:
    return float(x[0]), float(x[1])


def _softness(solref: Any, solimp: Any) -> Softness:
    return Softness(tuple(float(v) for v in solref), tuple(float(v) for v in solimp))  # type: ignore[arg-type]
