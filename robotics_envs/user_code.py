"""Failures of user-written simulators and policies as one line: file, line, function, and the names that exist."""

from __future__ import annotations

import difflib
import inspect
import traceback
from collections.abc import Iterable, Mapping
from types import FrameType

from lazy_registry.registry import UnknownNameError
from lazy_registry.source_places import defined_at, is_users_file, shown_path
from robotics_envs.base import NEEDED, Env
from robotics_envs.environments import make_env

_MOST_NAMES = 15


class UserCodeError(RuntimeError):
    """User-written code failed; the message is one line with its file and line. The error is in ``__context__``."""


def construct_env(env: Env | type[Env] | str, **parameters: float) -> Env:
    """A simulator from an instance, a class, or a name as :func:`robotics_envs.make_env` takes it.

    Raises:
        UserCodeError: the class, or the file it is in, fails.
        UnknownNameError: no such simulator or parameter.
        ValueError: a parameter outside its bounds.
        TypeError: ``env`` is no simulator.
    """
    if isinstance(env, Env) and not parameters:
        return env
    if not (isinstance(env, str) or (isinstance(env, type) and issubclass(env, Env))):
        raise TypeError(
            f"a simulator is a name, a subclass of robotics_envs.base.Env or an instance of one, got {env!r}"
        )
    try:
        made = make_env(env, **parameters) if isinstance(env, str) else env(**parameters)
    except Exception as error:
        what = _class_named(env) if isinstance(env, str) else env
        line = describe_failure(error, what, parameters)
        if line is None:
            raise
        raise UserCodeError(f"{_shown(env)}: {line}") from None
    if not isinstance(made, Env):
        raise TypeError(f"{_shown(env)} is no subclass of robotics_envs.base.Env: it made {made!r}")
    return made


def describe_failure(
    error: BaseException, called: object = None, arguments: Mapping[str, object] | None = None
) -> str | None:
    """``"my_env.py:12, in cost: p has no 'lenght'; did you mean 'length'? known: g, length"``.

    Args:
        error: an exception, caught where the user's code was called.
        called: the class that was called with ``arguments``, for errors of the call itself.

    Returns:
        None where no code of the user's took part: then the error is ours, or its message says all.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown_path(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = [
        (frame, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if is_users_file(frame.f_code.co_filename, frame.f_globals.get("__name__", ""))
    ]
    if frames:
        frame, number = frames[-1]
        where = f"{shown_path(frame.f_code.co_filename)}:{number}, in {frame.f_code.co_name}"
        return f"{where}: {_reason(error, frame)}"
    if isinstance(error, TypeError) and isinstance(called, type):
        return _refused_call(error, called, arguments or {})
    return None


def _shown(env: type | str | Env) -> str:
    return f"environment {env!r}" if isinstance(env, str) else f"environment {getattr(env, '__name__', env)}"


def _class_named(name: str) -> object:
    """The class behind a name, if it can be had: the error may be one of loading it."""
    from robotics_envs.environments import ENVIRONMENTS

    try:
        return ENVIRONMENTS.load(name)
    except Exception:
        return None


def _reason(error: BaseException, frame: FrameType) -> str:
    """What was wrong, with the names that would have been right."""
    text = str(error).strip().splitlines()
    first = text[0] if text else ""
    if isinstance(error, UnknownNameError):
        return first
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        holder = _mapping_without(error.args[0], frame)
        if holder is not None:
            name, known = holder
            return f"{name} has no {error.args[0]!r}{_hint(error.args[0], known)}"
    if isinstance(error, AttributeError) and isinstance(error.name, str):
        owner = getattr(error, "obj", None)
        if isinstance(owner, Env) and error.name in (*NEEDED, "constants"):
            return first  # it says how to set the attribute
        if owner is not None:
            hint = _hint(error.name, _attributes(owner))
            return f"{type(owner).__name__} has no attribute {error.name!r}{hint}"
    if isinstance(error, NameError) and isinstance(error.name, str):
        known = [*frame.f_locals, *(n for n in frame.f_globals if not n.startswith("_"))]
        return f"the name {error.name!r} is not defined{_hint(error.name, known)}"
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _mapping_without(key: str, frame: FrameType) -> tuple[str, list[str]] | None:
    """Name and keys of the mapping in a frame that lacks ``key``: ``p`` first, then the one with the nearest key."""
    held = {
        name: [str(k) for k in value]
        for name, value in frame.f_locals.items()
        if isinstance(value, Mapping) and key not in value
    }
    owner = frame.f_locals.get("self")
    for name, value in vars(owner).items() if hasattr(owner, "__dict__") else ():
        if isinstance(value, Mapping) and key not in value:
            held[f"self.{name}"] = [str(k) for k in value]
    if not held:
        return None

    def likeness(name: str) -> tuple[bool, float]:
        ratios = [difflib.SequenceMatcher(None, key, k).ratio() for k in held[name]]
        return name == "p", max(ratios, default=0.0)

    name = max(held, key=likeness)
    return name, held[name]


def _attributes(owner: object) -> list[str]:
    """Names that a user gave an object: its own, and those of its classes other than ``Env``, torch's and Python's."""
    names = [*getattr(owner, "__dict__", {})]
    for kind in type(owner).__mro__:
        if kind not in Env.__mro__ and not kind.__module__.startswith(("builtins", "torch")):
            names += vars(kind)
    return sorted({name for name in names if not name.startswith("_")}) or [
        name for name in dir(owner) if not name.startswith("_")
    ]


def _hint(wrong: str, known: Iterable[str]) -> str:
    """``"; did you mean 'length'? known: g, length"``."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    if len(names) > _MOST_NAMES:
        near = difflib.get_close_matches(wrong, names, n=_MOST_NAMES, cutoff=0.0)
        return f"{hint} among others known: {', '.join(near)}"
    return f"{hint} known: {', '.join(names) or '(none)'}"


def _refused_call(error: TypeError, called: type, arguments: Mapping[str, object]) -> str | None:
    """The line for a call that Python refused before the class's own code ran."""
    constructor = called.__init__  # type: ignore[misc]
    where = defined_at(constructor) or defined_at(called)
    if not where:
        return None
    try:
        signature = str(inspect.signature(called))
    except (TypeError, ValueError):
        signature = "(…)"
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    hint = ""
    if "unexpected keyword" in str(error) and "**" not in signature:
        hint = "; a simulator takes its physical parameters by name: def __init__(self, **parameters)"
    return f"{where.strip(' ()')}, in {called.__name__}{signature}: called with ({given}): {error}{hint}"
