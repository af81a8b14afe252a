"""From a robot's file to MuJoCo's compiled model, edited as the options say; the one module that imports mujoco."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lazy_registry.installation import install_command
from lazy_registry.registry import UnknownNameError
from robotics_envs.robots.errors import RobotFileError
from robotics_envs.robots.model import Options


def mujoco() -> ModuleType:
    """The library that reads MJCF and URDF.

    Raises:
        RobotFileError: it is not installed.
    """
    try:
        import mujoco as library
    except ModuleNotFoundError:
        raise RobotFileError(
            f"robots are read from files by MuJoCo, which is not installed: {install_command('robots')}"
        ) from None
    return library


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """While inside, MuJoCo writes no MUJOCO_LOG.TXT into the current folder."""
    library = mujoco()
    before = library.get_mju_user_warning()
    library.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        library.set_mju_user_warning(before)


def gymnasium_env(name: str, **options: Any) -> Any:
    """``gymnasium.make(name, **options)``, without what MuJoCo says about words of its own tasks' files."""
    import gymnasium

    has_mujoco = importlib.util.find_spec("mujoco") is not None
    with without_log() if has_mujoco and name in gymnasium_tasks() else contextlib.nullcontext():
        return gymnasium.make(name, **options)


@functools.cache
def gymnasium_tasks() -> frozenset[str]:
    """The names of Gymnasium's tasks in MuJoCo."""
    import gymnasium

    return frozenset(
        name for name, spec in gymnasium.registry.items() if "gymnasium.envs.mujoco" in str(spec.entry_point)
    )


def compiled(source: str | Path, options: Options) -> Any:
    """The ``MjModel`` of a file's path, or of its text if that begins with ``<``.

    Raises:
        UnknownNameError: there is no such file.
        RobotFileError: MuJoCo refuses it.
    """
    library = mujoco()
    text = str(source)
    try:
        if text.lstrip().startswith("<"):
            spec = library.MjSpec.from_string(text)
        else:
            if Path(text).is_dir():
                raise UnknownNameError(f"{text!r} is a folder, not the file of a robot")
            if not Path(text).is_file():
                raise UnknownNameError(f"there is no file {text!r}, as seen from {str(Path.cwd())!r}")
            spec = library.MjSpec.from_file(text)
        if options.self_collisions == "ignore":
            spec.compiler.fusestatic = False  # a base that is fixed to the world stays a body of the robot
        _edit(library, spec, options)
        with warnings.catch_warnings(), without_log():
            # Of words that a file uses; what they mean has not changed.
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            model = spec.compile()
    except (ValueError, RuntimeError) as error:
        if isinstance(error, (UnknownNameError, RobotFileError)):
            raise
        shown = "the text" if text.lstrip().startswith("<") else text
        raise RobotFileError(
            f"MuJoCo cannot read {shown}: {' '.join(str(error).split())}{_advice(error)}"
        ) from None
    if model.nu and model.opt.disableflags & int(library.mjtDisableBit.mjDSBL_ACTUATION):
        raise RobotFileError('<flag actuation="disable"/> takes all effect from the actuators: remove it')
    return _without_contacts(library, model, options)


def _advice(error: Exception) -> str:
    if re.search(r"package:|\.(stl|obj|msh|dae|ply)\b", str(error), re.IGNORECASE):
        return '; meshes="drop" reads the file without its meshes, if every body that moves has an <inertial>'
    return ""


def _edit(library: Any, spec: Any, options: Options) -> None:
    if options.timestep is not None:
        spec.option.timestep = options.timestep
    if options.cone == "pyramidal":
        spec.option.cone = library.mjtCone.mjCONE_PYRAMIDAL
    if options.meshes == "drop":
        for mesh in spec.meshes:
            if mesh.file and not _found(spec, mesh.file):
                for geom in [g for g in spec.geoms if g.meshname == mesh.name]:
                    spec.delete(geom)
                spec.delete(mesh)
    roots = list(spec.worldbody.bodies)
    if options.floating:
        fixed = [body for body in roots if not list(body.joints)]
        if not fixed:
            raise RobotFileError(
                "floating=True changes nothing: every root body of the file has a joint of its own"
            )
        for body in fixed:
            body.add_freejoint(name=f"{body.name or 'root'}_free")
    if options.floor:
        spec.worldbody.add_geom(
            name="floor", type=library.mjtGeom.mjGEOM_PLANE, size=[0.0, 0.0, 0.1], condim=3
        )
    if options.motors is not False:
        _add_motors(library, spec, options.motors)
    if options.control_range is not None:
        free = [
            actuator
            for actuator in spec.actuators
            if actuator.ctrllimited == library.mjtLimited.mjLIMITED_FALSE or not any(actuator.ctrlrange)
        ]
        if not free:
            raise RobotFileError(
                "control_range changes nothing: every actuator of the file has a ctrlrange of its own"
            )
        for actuator in free:
            actuator.ctrllimited = library.mjtLimited.mjLIMITED_TRUE
            actuator.ctrlrange = list(options.control_range)


def _found(spec: Any, file: str) -> bool:
    base = Path(spec.modelfiledir or ".") / (spec.meshdir or "")
    return (base / file).is_file() or Path(file).is_file()


def _add_motors(library: Any, spec: Any, motors: bool | float) -> None:
    driven = {actuator.target for actuator in spec.actuators}
    coupled = {
        q.name1 for q in spec.equalities if q.type == library.mjtEq.mjEQ_JOINT and q.name2 and q.active
    }
    kinds = library.mjtJoint.mjJNT_HINGE, library.mjtJoint.mjJNT_SLIDE
    unnamed = [q.parent.name or "one without a name" for q in spec.joints if q.type in kinds and not q.name]
    if unnamed:
        raise RobotFileError(
            f"joints without a name get no motor; name those of these bodies: {', '.join(unnamed)}"
        )
    missing = []
    for joint in spec.joints:
        if joint.name in driven or joint.name in coupled or joint.type not in kinds:
            continue
        low, high = (float(bound) for bound in joint.actfrcrange)
        effort = max(-low, high)
        if effort <= 0:
            if motors is True:
                missing.append(joint.name)
                continue
            effort = float(motors)
        spec.add_actuator(
            name=joint.name,
            target=joint.name,
            trntype=library.mjtTrn.mjTRN_JOINT,
            gaintype=library.mjtGain.mjGAIN_FIXED,
            biastype=library.mjtBias.mjBIAS_NONE,
            ctrllimited=library.mjtLimited.mjLIMITED_TRUE,
            ctrlrange=[-effort, effort],
        )
    if missing:
        raise RobotFileError(
            f"these joints have no effort limit, so that no motor can be added: {', '.join(missing)}; "
            "give a limit in the file, or motors=NUMBER (N, N m) for those without one"
        )


def _without_contacts(library: Any, model: Any, options: Options) -> Any:
    """The compiled model with the geoms that the options exclude touching nothing."""
    kinds = library.mjtGeom
    dropped = {int(kind) for kind in (kinds.mjGEOM_MESH, kinds.mjGEOM_HFIELD, kinds.mjGEOM_SDF)}
    if options.meshes == "drop":
        for k in range(model.ngeom):
            if int(model.geom_type[k]) in dropped:
                model.geom_contype[k] = model.geom_conaffinity[k] = 0
    if options.condim == 3:
        model.geom_condim[model.geom_condim > 3] = 3
    if options.self_collisions == "ignore":
        # Two bits: geoms of the robot touch those of the world, if they did before.  Those of its base touch nothing.
        bases = _bases(model)
        for k in range(model.ngeom):
            if int(model.geom_bodyid[k]) in bases:
                model.geom_contype[k] = model.geom_conaffinity[k] = 0
        fixed = model.body_weldid[model.geom_bodyid] == 0
        touches = _touching_the_world(model, fixed)
        for k in range(model.ngeom):
            model.geom_contype[k] = int(touches[k] and not fixed[k])
            model.geom_conaffinity[k] = int(touches[k] and fixed[k])
    return model


def _bases(model: Any) -> set[int]:
    """The bodies that are fixed to the world and carry others that move: the bases of arms."""
    found = set()
    for body in range(1, model.nbody):
        if model.body_weldid[body] != 0:
            above = int(model.body_parentid[body])
            while above and model.body_weldid[above] == 0:
                found.add(above)
                above = int(model.body_parentid[above])
    return found


def _touching_the_world(model: Any, fixed: Any) -> list[bool]:
    def meet(a: int, b: int) -> bool:
        return bool(
            (model.geom_contype[a] & model.geom_conaffinity[b])
            or (model.geom_contype[b] & model.geom_conaffinity[a])
        )

    pairs = [(a, b) for a in range(model.ngeom) for b in range(model.ngeom) if fixed[a] and not fixed[b]]
    touching = {k for a, b in pairs if meet(a, b) for k in (a, b)}
    if any(not meet(a, b) for a, b in pairs if a in touching and b in touching):
        raise RobotFileError(
            'self_collisions="ignore": contype and conaffinity of this file let different parts touch different '
            "parts of the world; exclude the pairs in the file instead"
        )
    return [k in touching for k in range(model.ngeom)]


@functools.cache
def _margin_rule() -> tuple[bool, bool]:
    """Whether the installed MuJoCo adds the margins of two geoms, or takes the larger; whether it takes off the gap."""
    library = mujoco()
    text = (
        '<mujoco><worldbody><geom type="plane" size="1 1 1" margin="0.02" gap="0.005"/><body pos="0 0 0.09">'
        '<freejoint/><geom size="0.1" margin="0.03" gap="0.004"/></body></worldbody></mujoco>'
    )
    model = library.MjModel.from_xml_string(text)
    data = library.MjData(model)
    library.mj_forward(model, data)
    found = float(data.contact[0].includemargin)
    for adds, together in ((True, sum), (False, max)):
        for takes_gap, gap in ((False, 0.0), (True, together((0.005, 0.004)))):
            if abs(found - (together((0.02, 0.03)) - gap)) < 1e-12:
                return adds, takes_gap
    raise RobotFileError(
        f"MuJoCo {library.__version__} makes margins of contacts by a rule that is not known here: install another "
        "version"
    )


def margin(margins: tuple[float, float], gaps: tuple[float, float]) -> float:
    """The distance in m below which two geoms act on each other, by the rule of the installed MuJoCo."""
    adds, takes_gap = _margin_rule()
    together = sum if adds else max
    return together(margins) - (together(gaps) if takes_gap else 0.0)


@functools.cache
def equality_drifts() -> bool:
    """Whether the installed MuJoCo takes off the acceleration that motion alone gives to a connect or weld."""
    library = mujoco()
    model = library.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="rod"><joint axis="0 0 1"/><geom size="0.1" pos="1 0 0"/></body></worldbody>'
        '<equality><connect body1="rod" anchor="1 0 0"/></equality></mujoco>'
    )
    data = library.MjData(model)
    data.qvel[0] = 2.0
    library.mj_forward(model, data)
    return bool(
        abs(float(data.efc_aref[0]) - 4.0) < 1e-9
    )  # the centripetal acceleration of its end, 1 m · (2 rad/s)²
