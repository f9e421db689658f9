"""Griffe extension: docstrings refer to code as Sphinx does; Markdown gets the code's name."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|exc):`(~?)([\w.]+)(?:\(\))?`")


class PlainRoles(Extension):
    """``:class:`~a.b.C``` becomes ```C```, ``:class:`a.b.C``` becomes ```a.b.C```."""

    def on_object(self, *, obj: Object, **rest: Any) -> None:
        """Called for every object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_code, obj.docstring.value)


def _code(role: re.Match[str]) -> str:
    short, name = role.groups()
    return f"`{name.rpartition('.')[2] if short else name}`"
