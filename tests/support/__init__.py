"""What tests share: laboratories, witnesses, encoders, made-up states. Used by tests only, never by the benchmarks.

Every module says at its head who uses it and what it must never do. The oracle is not here: that is tests/model.py.
"""
