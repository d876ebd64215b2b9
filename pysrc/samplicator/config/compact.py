"""A configuration moved close together in memory.

Reading one makes ten times the objects that are kept, and those lie scattered among what is free again: none of the
allocator's arenas (1 MiB, Objects/obmalloc.c) can be given back. Written out, let go of and read back in, the
configuration takes what it takes. Called by service and reload around every load.
"""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable

from samplicator.config import address, probe
from samplicator.config.model.loaded import Loaded


def load_compact(load: Callable[[], Loaded]) -> Loaded:
    """What `load` returns, without what reading it left behind. Raises what `load` raises."""
    written = pickle.dumps(load(), pickle.HIGHEST_PROTOCOL)
    for parse in (address.parse_listen, address.parse_target, address.parse_source, probe.parse_probe):
        parse.cache_clear()
    gc.collect()
    loaded: Loaded = pickle.loads(written)
    return loaded
