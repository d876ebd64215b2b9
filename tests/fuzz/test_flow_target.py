"""The flow stage under libFuzzer with ASan and UBSan, for seconds: the corpus passes and nothing near it breaks.
Longer: flow_fuzz.py.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import flow_fuzz
import pytest


@pytest.fixture(scope="module")
def target() -> Path:
    if flow_fuzz.clang() is None:
        pytest.skip("no clang here")
    if not (Path(sysconfig.get_config_var("LIBDIR")) / str(sysconfig.get_config_var("LDLIBRARY"))).exists():
        pytest.skip("no shared libpython here")
    try:
        return flow_fuzz.build()
    except subprocess.CalledProcessError as error:
        if "-fsanitize=fuzzer" in " ".join(error.cmd) and not list(Path("/usr/lib").glob("**/libclang_rt.fuzzer*.a")):
            pytest.skip("no libFuzzer here")
        raise


def test_corpus_is_small() -> None:
    files = list(flow_fuzz.CORPUS.iterdir())
    assert len(files) > 100
    assert sum(path.stat().st_size for path in files) < 300 << 10


def test_corpus_and_some_thousand_neighbours(target: Path, tmp_path: Path) -> None:
    assert flow_fuzz.run(15_000, 0, tmp_path / "found") == 0
