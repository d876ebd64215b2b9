"""The host names that a configuration uses.

Pure. Called by planner, and by host.resolve, which looks them up. The Services of a cluster are no host names.
"""

from __future__ import annotations

from typing import Final

from samplicator.config.model.loaded import Loaded, Path
from samplicator.config.model.whole import Config
from samplicator.plan.spec import NameKey

FAMILIES: Final = {"any": 0, "ipv4": 4, "ipv6": 6}


def names_of(config: Config) -> dict[NameKey, Path]:
    """Every host name of a listener or receiver, with the wanted family and the first place it stands at."""
    found: dict[NameKey, Path] = {}
    for index, listener in enumerate(config.listener):
        for number, endpoint in enumerate(listener.endpoints):
            if not endpoint.literal:
                found.setdefault((endpoint.host, FAMILIES[listener.family]), ("listener", index, "listen", number))
    for index, receiver in enumerate(config.receiver):
        if not receiver.endpoint.literal and receiver.service_port is None:
            found.setdefault((receiver.endpoint.host, FAMILIES[receiver.family]), ("receiver", index, "to"))
        if receiver.backup is not None and not receiver.backup.endpoint.literal:
            key = (receiver.backup.endpoint.host, FAMILIES[receiver.family])
            found.setdefault(key, ("receiver", index, "backup", "to"))
        asked = receiver.probing.endpoint
        if asked is not None and not asked.literal:
            found.setdefault((asked.host, FAMILIES[receiver.family]), ("receiver", index, "probe"))
    return found


def source_names_of(loaded: Loaded) -> dict[NameKey, Path]:
    """Every host name that a rule's `from` uses."""
    return {
        (source.host, source.family): ("rule", index, "from", number)
        for index, sources in enumerate(loaded.sources)
        for number, source in enumerate(sources)
        if source.host
    }
