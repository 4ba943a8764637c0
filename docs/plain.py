"""For mkdocstrings: docstrings here are plain text, so that `*S` is a shape and no emphasis, and what is aligned stays aligned."""

from __future__ import annotations

from typing import Any

import griffe


class Plain(griffe.Extension):
    """Escapes what Markdown would read as emphasis or a tag, outside indented blocks and code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = "\n".join(map(_escaped, obj.docstring.value.splitlines()))


def _escaped(line: str) -> str:
    if line.startswith("    "):
        return line
    return "`".join(part if number % 2 else _literal(part) for number, part in enumerate(line.split("`")))


def _literal(text: str) -> str:
    for mark in "*_<[":
        text = text.replace(mark, f"\\{mark}")
    return text
