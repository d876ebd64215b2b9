"""One direction of imports, and a fixed address for every third-party package.

What is imported for types only (`if TYPE_CHECKING:`) does not count for the direction: it does not exist at run time.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tree import ROOT, files

PACKAGE = ROOT / "pysrc" / "samplicator"

# From the ground up. A module imports at run time only from rooms on floors below its own, and from its own room.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"", "errors", "logs", "readings"}),
    frozenset({"config"}),
    frozenset({"plan"}),
    frozenset({"host", "gateways"}),
    frozenset({"datapath"}),
    frozenset({"health"}),
    frozenset({"supervisor"}),
    frozenset({"views"}),
    frozenset({"http"}),
    frozenset({"service"}),
    frozenset({"demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
FLAT = {"", "__main__", "errors", "logs", "readings"}
USES_FASTPATH = {"datapath", "supervisor", "views.prometheus", "gateways.door"}
THIRD_PARTY: dict[str, set[str]] = {
    "uvloop": {"service"},
    "aiohttp": {"http", "service"},
    "prometheus_client": {"views"},
    "orjson": {"http"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "rich": {"demo", "cli"},
    "pyroute2": {"host"},
    "typing_extensions": {"_fastpath"},
}
CONFIG_NEVER = {"socket", "asyncio", "uvloop", "threading", "ctypes"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {
    module_name(ROOT / p): ROOT / p for p in files() if p.suffix == ".py" and p.is_relative_to("pysrc/samplicator")
}


def room(module: str) -> str:
    """The room of a module: `config.toml.load` lives in `config`."""
    return module.split(".")[0]


def floor(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if room(module) in names:
            return number
    raise AssertionError(f"module {module} is on no floor: give its room a floor in FLOORS")


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


def imported(module: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, for types only) of everything the module imports; relative imports made absolute."""
    path = MODULES[module]
    package = (
        ("samplicator." + module).split(".") if path.stem == "__init__" else ("samplicator." + module).split(".")[:-1]
    )
    for node, typing_only in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, typing_only
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{start}.{alias.name}".removeprefix("samplicator.")
                is_module = start.startswith("samplicator") and (submodule in MODULES or submodule == "_fastpath")
                yield (f"{start}.{alias.name}" if is_module else start), typing_only


def own(name: str) -> str | None:
    """`samplicator.config.model` -> `config.model`; None for what is not ours."""
    if name == "samplicator":
        return ""
    return name.removeprefix("samplicator.") if name.startswith("samplicator.") else None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down(module: str) -> None:
    for name, typing_only in imported(module):
        target = own(name)
        if target is None or typing_only or room(target) == "_fastpath" or room(target) == room(module):
            continue
        assert floor(target) < floor(module), f"{module} imports {target}, which is not below it"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_fastpath_has_few_users(module: str) -> None:
    if any(own(name) == "_fastpath" and not typing_only for name, typing_only in imported(module)):
        assert {room(module), module} & USES_FASTPATH, f"{module} imports _fastpath"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_third_party_packages_have_an_address(module: str) -> None:
    for name, _ in imported(module):
        package = name.split(".")[0]
        if own(name) is not None or package in sys.stdlib_module_names:
            continue
        assert package in THIRD_PARTY, f"{module} imports {package}, which has no address"
        assert room(module) in THIRD_PARTY[package], (
            f"{module} imports {package}, which lives in {THIRD_PARTY[package]}"
        )


@pytest.mark.parametrize("module", sorted(m for m in MODULES if room(m) == "config"))
def test_config_does_no_io_but_files(module: str) -> None:
    assert {name.split(".")[0] for name, _ in imported(module)} & CONFIG_NEVER == set()


def test_few_modules_stand_outside_the_rooms() -> None:
    assert {module for module in MODULES if MODULES[module].parent == PACKAGE} == FLAT
    assert {room(module) for module in MODULES} == frozenset().union(*FLOORS)


@pytest.mark.parametrize("module", sorted(m for m in MODULES if MODULES[m].stem == "__init__" and m))
def test_a_room_s_first_file_only_says_what_it_is_for(module: str) -> None:
    """No class, no function, nothing re-exported: no name has two addresses."""
    body = ast.parse(MODULES[module].read_text()).body
    assert len(body) == 1, f"{module}/__init__.py holds more than its docstring"
    assert ast.get_docstring(ast.Module(body, [])), f"{module}/__init__.py says nothing"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_is_re_exported(module: str) -> None:
    """What a module imports from another of ours is defined there."""
    path = MODULES[module]
    assert "__all__" not in path.read_text()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("samplicator."):
            continue
        source = MODULES.get((node.module or "").removeprefix("samplicator."))
        if source is None or source.suffix != ".py":
            continue
        taken = {alias.name for alias in node.names}
        borrowed = {
            alias.asname or alias.name
            for inner in ast.walk(ast.parse(source.read_text()))
            if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith("samplicator")
            for alias in inner.names
        }
        assert taken & borrowed == set(), f"{module} takes {taken & borrowed} from {node.module}, which borrows it"
