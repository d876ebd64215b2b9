"""The flow stage under libFuzzer with ASan and UBSan, for seconds: the corpus passes and nothing near it breaks.
Longer: flow_fuzz.py. `make test` installs clang and libFuzzer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import flow_fuzz


@pytest.fixture(scope="module")
def target() -> Path:
    return flow_fuzz.build()


def test_corpus_is_small() -> None:
    files = list(flow_fuzz.CORPUS.iterdir())
    assert len(files) > 100
    assert sum(path.stat().st_size for path in files) < 300 << 10


def test_corpus_and_some_thousand_neighbors(target: Path, tmp_path: Path) -> None:
    assert flow_fuzz.run(15_000, 0, tmp_path / "found") == 0
