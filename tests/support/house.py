"""The house: rooms, floors and who imports whom, read from the source; and the picture of it in ARCHITECTURE.md.

`python -m support.house` (in tests/) writes the picture anew. What is imported for types only (`if TYPE_CHECKING:`)
does not count for the direction: it does not exist at run time. Pure: source texts in, faults out, so that the guard
can be shown a fault of each kind.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from support.tree import ROOT, files

PACKAGE = ROOT / "pysrc" / "samplicator"
PAGE = ROOT / "ARCHITECTURE.md"
MARKS = ("<!-- rooms: written by tests/support/house.py -->", "<!-- end of rooms -->")

# From the ground up. A module imports at run time only from rooms on floors below its own, and from its own room.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("", "errors", "logs", "readings"),
    ("config",),
    ("plan",),
    ("host", "gateways", "cluster"),
    ("datapath",),
    ("health",),
    ("supervisor",),
    ("views",),
    ("http",),
    ("service",),
    ("demo", "witness"),
    ("cli",),
    ("__main__",),
)
FLAT = {"", "__main__", "errors", "logs", "readings"}
USES_FASTPATH = {"datapath", "gateways.door", "supervisor", "views.prometheus"}
THIRD_PARTY: dict[str, set[str]] = {
    "uvloop": {"service"},
    "aiohttp": {"http", "service"},
    "prometheus_client": {"views"},
    "orjson": {"http"},
    "yaml": {"config"},
    "bcrypt": {"http"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "rich": {"demo", "cli"},
    "typing_extensions": {"_fastpath"},
}
NEVER: dict[str, set[str]] = {
    "config": {"socket", "asyncio", "uvloop", "threading", "ctypes"},
    "plan": {"socket", "asyncio", "uvloop", "threading", "ctypes"},
}
"""What a room that does no I/O never imports."""

Modules = Mapping[str, str]
"""Source text by module, without the leading `samplicator.`; a package's __init__ ends in `.__init__`."""


def modules() -> dict[str, str]:
    found = {}
    for path in files():
        if path.suffix == ".py" and path.is_relative_to("pysrc/samplicator"):
            name = ".".join((ROOT / path).relative_to(PACKAGE).with_suffix("").parts)
            found["" if name == "__init__" else name] = (ROOT / path).read_text()
    return found


parse = functools.cache(ast.parse)


@functools.cache
def borrowed(source: str) -> frozenset[str]:
    """Names that a module has from others of ours."""
    return frozenset(
        alias.asname or alias.name
        for node in ast.walk(parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samplicator")
        for alias in node.names
    )


def room(module: str) -> str:
    """The room of a module: `config.toml.load` lives in `config`."""
    return module.split(".")[0]


def floor(module: str) -> int:
    """-1: its room is on none."""
    return next((number for number, names in enumerate(FLOORS) if room(module) in names), -1)


def walk(node: ast.AST, typing_only: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, typing_only
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for statement in child.body:
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    yield statement, True
        else:
            yield from walk(child, typing_only)


def imported(known: Modules, module: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, for types only) of everything the module imports; relative imports made absolute."""
    package = ("samplicator." + module).split(".")[:-1]
    for node, typing_only in walk(parse(known[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, typing_only
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{start}.{alias.name}".removeprefix("samplicator.")
                is_module = start.startswith("samplicator") and (submodule in known or submodule == "_fastpath")
                yield (f"{start}.{alias.name}" if is_module else start), typing_only


def own(name: str) -> str | None:
    """`samplicator.config.address` -> `config.address`; None for what is not ours."""
    if name == "samplicator":
        return ""
    return name.removeprefix("samplicator.") if name.startswith("samplicator.") else None


def faults(known: Modules) -> list[str]:
    """Every sentence that the house contradicts."""
    found = [f"{module} stands outside the rooms" for module in known if "." not in module and module not in FLAT]
    for module in known:
        if floor(module) < 0:
            found.append(f"{module} is on no floor: give its room a floor in FLOORS")
            continue
        found += import_faults(known, module)
        found += face_faults(known, module)
    return found


def import_faults(known: Modules, module: str) -> Iterator[str]:
    for name, typing_only in imported(known, module):
        target = own(name)
        package = name.split(".")[0]
        if target is None:
            if package in NEVER.get(room(module), ()):
                yield f"{module} imports {package}: {room(module)} does no I/O"
            if package not in sys.stdlib_module_names and room(module) not in THIRD_PARTY.get(package, ()):
                yield f"{module} imports {package}, which does not live in {room(module)}"
        elif typing_only:
            continue
        elif room(target) == "_fastpath":
            if not {room(module), module} & USES_FASTPATH:
                yield f"{module} imports _fastpath"
        elif room(target) != room(module) and floor(target) >= floor(module):
            yield f"{module} imports {target}, which is not below it"


def face_faults(known: Modules, module: str) -> Iterator[str]:
    """No class, no function, nothing re-exported: no name has two addresses."""
    if "__all__" in known[module]:
        yield f"{module} has an __all__: nothing is re-exported"
    tree = parse(known[module])
    if module.endswith("__init__") and (len(tree.body) != 1 or not ast.get_docstring(tree)):
        yield f"{module} is not just a docstring"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("samplicator."):
            continue
        source = known.get((node.module or "").removeprefix("samplicator."))
        if source is None:
            continue
        for name in {alias.name for alias in node.names} & borrowed(source):
            yield f"{module} takes {name} from {node.module}, which borrows it"


def purpose(known: Modules, name: str) -> str:
    """First sentence of a room."""
    text = ast.get_docstring(parse(known.get(f"{name}.__init__", known.get(name, "")))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def picture(known: Modules) -> str:
    """The import graph in words: a line per room, from the roof down, with the rooms that it imports at run time."""
    arrows: dict[str, set[str]] = {}
    for module in known:
        for name, typing_only in imported(known, module):
            target = own(name)
            if target and not typing_only and room(target) != room(module):
                arrows.setdefault(room(module), set()).add(room(target))
    order = {name: number for number, names in enumerate(FLOORS) for name in names} | {"_fastpath": -1}
    lines = ["```"]
    for names in reversed(FLOORS):
        for name in names:
            if name in FLAT or not any(room(module) == name for module in known):
                continue
            to = sorted(arrows.get(name, set()) - FLAT, key=lambda item: (-order[item], item))
            lines += [f"{name:<11} {purpose(known, name)}", f"            -> {', '.join(to) or 'nothing'}"]
    count = sum(len(to - FLAT) for to in arrows.values())
    lines += [
        "```",
        "",
        f"{len(arrows.keys() - FLAT)} rooms, {count} arrows; errors, logs and readings, on the ground,",
    ]
    lines += ["are imported by most of them and left out."]
    return "\n".join(lines)


def page_with(text: str, drawn: str) -> str:
    """ARCHITECTURE.md with the picture between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{drawn}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    Path(PAGE).write_text(page_with(PAGE.read_text(), picture(modules())))
