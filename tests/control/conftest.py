"""Fixtures of the control plane's tests."""

from hosts import load

__all__ = ["load"]
