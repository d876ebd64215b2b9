"""The demonstration: exporters, the relay and receivers, all on this machine.

May import: everything but cli.
"""
