"""Fixtures of the deployment tests: laboratories, machines, and the package that these install, made once per run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.appliance import Appliance, booted
from support.labs import lab, make_lab, swept  # noqa: F401
from support.machine import release_of_host, root_of
from support.package import build, build_on, index_reachable


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Debian package of this tree for a release: made here when this host is that release, else on a fresh one."""
    made: dict[str, Path] = {}
    if not index_reachable():
        pytest.skip("the package needs packages of Python, and no index of them can be reached from here")

    def make(release: str) -> Path:
        if release not in made:
            if release != release_of_host():
                made[release] = build_on(release, tmp_path_factory.mktemp("package"))
            else:
                with ThreadPoolExecutor() as pool:  # the root file system is needed as well, and takes as long
                    root = pool.submit(root_of, release)
                    made[release] = build()
                    root.exception()  # whoever boots it says what is wrong
        return made[release]

    return make


@pytest.fixture(scope="module")
def appliance(request: pytest.FixtureRequest, package: Callable[[str], Path]) -> Iterator[Appliance]:
    """A machine that runs the release of Debian in the parameter, with the package."""
    made = package(request.param)
    with booted(heavy="deploy_heavy" in request.keywords or request.param != "bookworm") as boot:
        yield Appliance(*boot(request.param), made)
