"""Reduces the memory of a configuration that was read.

Reading makes ten times as many objects as are kept, and the kept objects are scattered among freed ones, so that none
of the allocator's arenas (1 MiB, Objects/obmalloc.c) can be returned. So the configuration is pickled, dropped and
unpickled: then it uses only the memory that it needs. Called by service and reload around every load.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable

from samplicator.config import address, kubernetes, probe, transport
from samplicator.config.model.loaded import Loaded


def load_compact(load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns, without the memory that reading it used. Raises what `load` raises."""
    written = pickle.dumps(load(), pickle.HIGHEST_PROTOCOL)
    for parse in (
        address.parse_listen,
        address.parse_target,
        address.parse_source,
        kubernetes.parse_service_port,
        probe.parse_probe,
        transport.parse_place,
        transport.parse_peer,
    ):
        parse.cache_clear()
    gc.collect()
    loaded: Loaded = pickle.loads(written)
    return loaded
