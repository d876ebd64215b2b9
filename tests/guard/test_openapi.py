"""The OpenAPI document: its copy in the repository is fresh, and it describes each route that is served."""

from __future__ import annotations

import json

from samplicator.http.app import make_app
from samplicator.http.openapi import BEARER, PASSWORD
from samplicator.http.routes import ROUTES, described
from support.state import make_state
from support.tree import ROOT

COPY = ROOT / "deploy" / "openapi" / "openapi.json"
GENERATE = "run .venv/bin/python deploy/openapi/generate.py"


def test_the_copy_is_fresh() -> None:
    assert COPY.read_bytes() == described(), GENERATE


def test_every_route_is_described() -> None:
    served = {
        (resource.canonical, route.method)
        for resource in make_app(make_state()).router.resources()
        for route in resource
    }
    paths = json.loads(described())["paths"]
    assert served == {(path, method.upper()) for path, methods in paths.items() for method in methods}


def test_every_path_is_in_the_manual() -> None:
    manual = (ROOT / "deploy" / "man" / "samplicator.8").read_text()
    assert [route.path for route in ROUTES if route.path.partition("{")[0] not in manual and route.path != "/"] == []


def test_operations_are_whole() -> None:
    """Each has its own name and a summary; what changes something asks for the token; who has parameters says 400."""
    document = json.loads(described())
    operations = [(path, method, each) for path, m in document["paths"].items() for method, each in m.items()]
    names = [each["operationId"] for _, _, each in operations]
    assert len(set(names)) == len(names)
    for path, method, each in operations:
        assert each["summary"], path
        changes = "101" in each["responses"]  # another protocol, on the control socket only
        assert {"101" if changes else "200", "500", "503"} <= each["responses"].keys(), path
        assert ("404" in each["responses"]) == ("{" in path), path
        guarded = (method in ("post", "put") and not changes) or path == "/api/v1/tap"  # it shows payloads
        assert ("security" in each) == guarded, path
        assert path == "/metrics" or "{" in path or ("400" in each["responses"]) == ("parameters" in each), path
    assert {BEARER, PASSWORD} == document["components"]["securitySchemes"].keys()


def test_every_shape_says_what_it_is() -> None:
    shapes = json.loads(described())["components"]["schemas"]
    assert [
        name for name, shape in shapes.items() if not shape["description"] or shape["description"].startswith("dict(")
    ] == []
    unused = [name for name in shapes if f'"#/components/schemas/{name}"' not in described().decode()]
    assert unused == []
