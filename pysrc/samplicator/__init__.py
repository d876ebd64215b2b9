"""samplicator: receives UDP telemetry and resends every datagram to any number of receivers."""

__version__ = "0.1.0"
