"""How many workers run, and on which CPUs.

Pure. Called by planner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from samplicator.config.model.datapath import Datapath
from samplicator.config.model.loaded import Path


def workers_of(
    datapath: Datapath, allowed: Sequence[int], problem: Callable[[Path, str], None], warn: Callable[[str], None]
) -> tuple[int, tuple[int, ...]]:
    """Number of workers and the CPUs to pin them to. A fixed number without `cpus` is left to the scheduler. allowed:
    the CPUs that this process may run on.
    """
    for number, cpu in enumerate(datapath.cpus):
        if cpu not in allowed:
            may = ", ".join(map(str, allowed))
            problem(("datapath", "cpus", number), f"this process may not run on CPU {cpu}; name CPUs from {may}")
    cpus = tuple(dict.fromkeys(datapath.cpus))
    if datapath.workers == "auto":
        cpus = cpus or tuple(allowed)
        return len(cpus), cpus
    if cpus and datapath.workers > len(cpus):
        warn(f"there are more workers ({datapath.workers}) than CPUs ({len(cpus)}), so workers wait for each other")
    return datapath.workers, cpus
