"""Fixtures of the system tests."""

from support.labs import lab, make_lab, swept  # noqa: F401
