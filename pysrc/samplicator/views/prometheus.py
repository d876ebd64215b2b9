"""Metrics: the catalogue filled with readings, as Prometheus text or OpenMetrics.

Purpose: one page over the supervisor's readings and the service's state, and `render` for the HTTP interface.
Invariants: every family and every fixed label value is there from the first scrape, as 0; what is exported is exactly
what the catalogue says; a scrape takes no lock that a worker takes. Called by http (in a thread, never on the loop).
The only importer of prometheus_client, which adds its process_* and python_gc_* and negotiates the format; our own
families are written here, because its objects per sample cost 20 times as much. It must never keep a value between
scrapes: the counters are the truth. What it keeps is the text around the values.
"""

from __future__ import annotations

import platform
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from samplicator import __version__, _fastpath
from samplicator.views.catalogue import CATALOGUE
from samplicator.views.metric import Metric
from samplicator.views.service import LOOP_LAG_BOUNDS

if TYPE_CHECKING:
    from samplicator.readings import GatewayReading, Readings
    from samplicator.views.service import ServiceState

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
GZIP_LEVEL: Final = 1  # nine times quicker than the default 9, a tenth larger (measured)

Owners = Sequence[tuple[str, ...]]
"""Label values of those that a family counts for: one tuple per listener, receiver, worker. The last label of a family
with a split is not among them: each owner has each value of it.
"""
Values = Sequence[float]
"""The values of a family, owner by owner, and for each in the order of the split or of the buckets."""


def revision() -> str:
    """The revision this was built from: packagers leave it in a file `REVISION` beside this module."""
    try:
        return resources.files("samplicator").joinpath("REVISION").read_text(encoding="ascii").strip() or "unknown"
    except (OSError, UnicodeError):
        return "unknown"


class Page:
    """The families of the catalogue over a ServiceState. Any thread may ask, also several at the same time."""

    def __init__(self, state: ServiceState) -> None:
        self._state = state
        self._build = ((__version__, revision(), platform.python_version(), _fastpath.CYTHON_VERSION),)
        self._owners: dict[str, Owners] = {}
        self._bodies: dict[str, tuple[Owners, str]] = {}
        self.process = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.process)
        GCCollector(registry=self.process)

    def families(self, *, openmetrics: bool, names: Sequence[str] = ()) -> Iterator[str]:
        """The text of each family now, or of the series with these names only, () = all."""
        started = time.perf_counter()
        readings = self._state.view.readings()
        gateways = self._state.gateways()
        for metric in CATALOGUE:
            if names and not set(metric.series).intersection(names):
                continue
            if metric.name == "collector_duration_seconds":  # the last row
                body = f"{metric.full_name} {time.perf_counter() - started}\n"
            else:
                owners, values = self._values(metric, readings, gateways)
                body = self._body(metric, owners) % tuple(values)
            if names and metric.kind == "histogram":
                body = "".join(line for line in body.splitlines(keepends=True) if line.split("{", 1)[0] in names)
            yield _HEADS[openmetrics][metric.name] + body

    # ------------------------------------------------------------------ the text around the values

    def _body(self, metric: Metric, owners: Owners) -> str:
        """The family's lines with %s for each value; made when its owners change."""
        kept, body = self._bodies.get(metric.name, ((), ""))
        if kept is not owners:
            body = "".join(_lines(metric, owners))
            self._bodies[metric.name] = owners, body
        return body

    def _same(self, kind: str, owners: Owners) -> Owners:
        """The owners as they were kept at the last scrape if they are equal, so that one look tells that they are."""
        kept = self._owners.get(kind)
        if kept != owners:
            kept = self._owners[kind] = owners
        return kept

    # ------------------------------------------------------------------ values of one family

    def _values(self, metric: Metric, readings: Readings, gateways: Sequence[GatewayReading]) -> tuple[Owners, Values]:
        owner, _, name = metric.origin.partition(".")
        if metric.kind == "histogram":
            return self._distribution(metric, readings)
        if metric.kind == "info":
            owners = self._same(metric.name, self._named(metric, readings))
            return owners, [1] * len(owners)
        if owner in ("flow", "protocols"):
            return ONE, self._flow_values(metric, readings)
        if owner in ("plan", "reload"):
            return ONE, [+getattr(readings if owner == "plan" else self._state.reloader, name)]
        if metric.name == "log_messages_total":
            written = dict(self._state.log_messages)
            return LEVELS, [written.get(level, 0) for level in LOG_LEVELS]
        if metric.name == "http_refused_requests_total":
            refused = dict(self._state.http_refused)
            return self._same(metric.name, [(reason,) for reason in refused]), list(refused.values())
        if owner in ("inward", "outward"):
            return self._gateway_values(metric, gateways)
        items, owners = self._items(owner, readings)
        if metric.name == "exporter_lost_total":
            owners = self._same(metric.name, [(item.exporter, item.unit) for item in items])
        if owner in ("rx", "tx", "worker"):
            fields = [field for _, field in metric.split] or [name]
            values: list[float] = [item.counters[field] for item in items for field in fields]
            return owners, values if metric.scale == 1 else [value * metric.scale for value in values]
        if metric.split:
            words = [word for _, word in metric.split]
            if metric.name == "receiver_state":
                return owners, [+(item.state == word) for item in items for word in words]
            return owners, [+(word in item.gave_up) for item in items for word in words]
        return owners, [+getattr(item, name) for item in items]

    def _items(self, owner: str, readings: Readings) -> tuple[Sequence[Any], Owners]:
        """What a family of this origin counts for, with the label values of each."""
        if owner in ("rx", "listener"):
            return readings.listeners, self._same("listener", [(item.name,) for item in readings.listeners])
        if owner in ("tx", "receiver"):
            return readings.receivers, self._same("receiver", [(item.name,) for item in readings.receivers])
        if owner in ("worker", "reader"):
            return readings.workers, self._same("worker", [(str(item.index),) for item in readings.workers])
        if owner == "member":
            members = [(pool.name, member) for pool in readings.pools for member in pool.members]
            return [member for _, member in members], self._same("member", [(p, m.receiver) for p, m in members])
        if owner == "tally":
            tallies = self._state.history.tallies
            return tallies, self._same("tally", [(item.exporter,) for item in tallies])
        if owner == "kubernetes":
            services = list(self._state.services())
            return services, self._same("kubernetes", [(item.receiver,) for item in services])
        raise LookupError(f"nothing fills a metric of origin {owner}")  # pragma: no cover - the tests fail on it

    def _gateway_values(self, metric: Metric, gateways: Sequence[GatewayReading]) -> tuple[Owners, Values]:
        owner, _, name = metric.origin.partition(".")
        items = [item for item in gateways if (item.side == "in") == (owner == "inward")]
        owners = self._same(owner, [(item.gateway, item.name) for item in items])
        fields = [field for _, field in metric.split] or [name if name != "sessions" else "connected"]
        counts = [item.sessions if name == "sessions" else item.counters for item in items]
        return owners, [each.get(field, 0) for each in counts for field in fields]

    def _named(self, metric: Metric, readings: Readings) -> Owners:
        """The label values of an info family."""
        if metric.name == "listener_info":
            # a port may be bound on one address once only, so the labels are unique
            places = ((item.name, place) for item in readings.listeners for place in dict.fromkeys(item.sockets))
            return [(name, address, str(port)) for name, (address, port) in places]
        if metric.name == "receiver_info":
            return [(r.name, r.address, str(r.port), r.source, r.engine) for r in readings.receivers]
        return self._build

    def _flow_values(self, metric: Metric, readings: Readings) -> Values:
        owner, _, name = metric.origin.partition(".")
        if metric.name == "flow_memory_bytes":
            return [readings.flow.memory_bytes]
        counts: Mapping[str, int] = readings.flow.counters if owner == "flow" else getattr(readings.flow, name)
        return [counts.get(field, 0) for _, field in metric.split or ((None, name),)]

    def _distribution(self, metric: Metric, readings: Readings) -> tuple[Owners, Values]:
        if metric.name == "receive_batch_datagrams":
            items, owners = self._items("listener", readings)
            spread = [_cumulative(item.batch_counts, item.counters["datagrams"]) for item in items]
            return owners, [value for values in spread for value in values]
        if metric.name == "forward_latency_seconds":
            return ONE, _cumulative(readings.latency_counts, readings.latency_sum_ns / 1e9)
        lag = self._state.loop_lag
        return ONE, _cumulative(lag.counts, lag.sum_seconds)


ONE: Final[Owners] = ((),)
LEVELS: Final[Owners] = tuple((level,) for level in LOG_LEVELS)


def _cumulative(counts: Iterable[int], total: float) -> list[float]:
    """Values of a histogram: its buckets, +Inf last, then count and sum. counts: per bucket."""
    buckets: list[float] = list(accumulate(counts))
    return [*buckets, buckets[-1], total]


# ---------------------------------------------------------------------------------------------------- families


def _bounds(metric: Metric) -> list[str]:
    """Upper bounds of a histogram's buckets, as label values."""
    bounds: Sequence[float] = {
        "receive_batch_datagrams": _fastpath.BATCH_BOUNDS,
        "forward_latency_seconds": [bound / 1e9 for bound in _fastpath.LATENCY_BOUNDS_NS],
        "control_loop_lag_seconds": LOOP_LAG_BOUNDS,
    }[metric.name]
    return [str(floatToGoString(bound)) for bound in (*bounds, float("inf"))]  # type: ignore[no-untyped-call]


def _escaped(text: str) -> str:
    r"""Text of a label value or of a help: \, line feed and " are written with a \ (OpenMetrics 1.0, 4.1)."""
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    """The part in braces in the order of names, as the library writes it; "" without labels. Ready for `%`."""
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in sorted(zip(names, values, strict=True)))
    return f"{{{pairs}}}".replace("%", "%%") if pairs else ""


def _lines(metric: Metric, owners: Owners) -> Iterable[str]:
    name = metric.full_name
    for owner in owners:
        if metric.kind == "histogram":
            for bound in _bounds(metric):
                yield f"{name}_bucket{_labels((*metric.labels, 'le'), (*owner, bound))} %s\n"
            labels = _labels(metric.labels, owner)
            yield f"{name}_count{labels} %s\n{name}_sum{labels} %s\n"
        elif metric.split:
            yield from (f"{name}{_labels(metric.labels, (*owner, value))} %s\n" for value, _ in metric.split)
        else:
            yield f"{name}{_labels(metric.labels, owner)} %s\n"


def _head(metric: Metric, openmetrics: bool) -> str:
    """HELP and TYPE. OpenMetrics names a family without _total and _info, and escapes quotes in its help."""
    name, kind, text = metric.full_name, metric.kind, metric.help.replace("\\", r"\\")
    if openmetrics:
        name, text = name.removesuffix("_total").removesuffix("_info"), _escaped(metric.help)
    elif kind == "info":
        return f"# HELP {name} {text}\n# TYPE {name} gauge\n"
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


_HEADS: Final = tuple({row.name: _head(row, openmetrics) for row in CATALOGUE} for openmetrics in (False, True))
"""By format (0 = text, 1 = OpenMetrics) and name."""


# ---------------------------------------------------------------------------------------------------- the text


def render(
    page: Page, *, accept: str = "", accept_encoding: str = "", names: Sequence[str] = ()
) -> tuple[bytes, dict[str, str]]:
    """(body, headers) for a scrape. accept: decides between OpenMetrics and text. names: only these series, () = all.

    Costs about 7 ms of CPU for 20,000 samples, half of it compression: call it in a thread.
    """
    encoder, content_type = choose_encoder(accept)
    openmetrics = content_type.startswith("application/openmetrics-text")
    source: Any = page.process.restricted_registry(names) if names else page.process
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    pack: Callable[[bytes], bytes] = bytes
    rest: Callable[[], bytes] = bytes
    if _takes_gzip(accept_encoding):
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, zlib.MAX_WBITS | 16)  # | 16: gzip (zlib.h)
        pack, rest = packer.compress, packer.flush
        headers["Content-Encoding"] = "gzip"
    # Family by family: one is in the cache of the CPU, the whole text is not.
    parts = [pack(family.encode()) for family in page.families(openmetrics=openmetrics, names=names)]
    parts.append(pack(encoder(source)))  # which ends OpenMetrics with its last line
    parts.append(rest())
    body = b"".join(parts)
    return body, headers


def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
