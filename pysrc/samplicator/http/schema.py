"""JSON Schema of the typed shapes in views: what TypedDicts and the types of their fields say, as OpenAPI 3.1 wants it.

Invariants: a shape becomes one named component, whatever number of others use it; its description is the first
paragraph of its docstring, that of a field the text of its Annotated. Called by openapi. It must never guess: an
unknown type is a TypeError.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

Schema = dict[str, Any]

_PLAIN: Mapping[Any, str] = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}


class Schemas:
    """Collects the components that the schemas it made refer to."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}
        self._shapes: dict[str, object] = {}

    def of(self, shape: Any) -> Schema:
        """The schema of a type: a TypedDict, list, dict, Literal, union, plain type, or these in Annotated."""
        if shape in _PLAIN:
            return {"type": _PLAIN[shape]}
        if is_typeddict(shape):
            return self._named(shape.__name__, shape, shape.__required_keys__)
        origin, inner = get_origin(shape), get_args(shape)
        if origin is Annotated:
            texts = [each for each in inner[1:] if isinstance(each, str)]
            return self.of(inner[0]) | ({"description": texts[0]} if texts else {})
        if origin in (list, Sequence):
            return {"type": "array", "items": self.of(inner[0])}
        if origin in (dict, Mapping) and inner[0] is str:
            return {"type": "object", "additionalProperties": True if inner[1] is Any else self.of(inner[1])}
        if origin is Literal:
            return {"enum": list(inner)}
        if origin in (Union, types.UnionType):
            return self._either([self.of(each) for each in inner])
        raise TypeError(f"{shape!r} has no JSON Schema here")

    def _either(self, schemas: Sequence[Schema]) -> Schema:
        if all(set(schema) == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": list(schemas)}

    def _named(self, name: str, shape: Any, required: Iterable[str]) -> Schema:
        if self._shapes.setdefault(name, shape) is not shape:
            raise TypeError(f"two shapes are called {name}")
        if name not in self.components:
            self.components[name] = {}  # taken, should it refer to itself
            hints = get_type_hints(shape, include_extras=True)
            self.components[name] = {
                "type": "object",
                "description": " ".join((shape.__doc__ or "").partition("\n\n")[0].split()),
                "properties": {field: self.of(hint) for field, hint in hints.items()},
                "required": sorted(required),
            }
        return {"$ref": f"#/components/schemas/{name}"}
