"""Fixtures of the deployment tests."""

from support.labs import lab, make_lab, swept  # noqa: F401
