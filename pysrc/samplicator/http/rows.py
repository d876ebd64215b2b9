"""The rows of the long lists of the HTTP interface, as JSON, a piece at a time.

Each function makes the rows behind a place, in a thread, about PIECE_BYTES of them, and says where to go on. Called by
listing, for reading.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import orjson

from samplicator.config.address import address_bytes
from samplicator.views import activity, exporters, shares, templates

if TYPE_CHECKING:
    from samplicator.http.listing import Piece, Place
    from samplicator.readings import Domain
    from samplicator.views.history import Kind, Window
    from samplicator.views.service import ServiceState

PIECE_BYTES: Final = 64 << 10
LOOKED: Final = 2000
"""Domains looked at for one piece."""
SHORT: Final = 200
"""Domains in short that are one piece."""
READ_BYTES: Final = 1 << 20
"""Bytes of options data read for one piece."""


def exporters_piece(state: ServiceState, place: Place, limit: int, exporter: str = "") -> Piece:
    """Observation domains, of all exporters or of one."""
    view, rows, size, read = state.view, list[bytes](), 0, 0
    names = view.listener_names()
    for _ in range(LOOKED):
        session, place = _following(state, place)
        if session is None:
            return rows, None
        if exporter in ("", session.address):
            known = view.flow_options(session.worker, session.number) if session.options_data else []
            read += sum(len(item.raw) for item in known)
            rows.append(orjson.dumps(exporters.exporter(session, names, known), option=orjson.OPT_NON_STR_KEYS))
            size += len(rows[-1])
        if size >= PIECE_BYTES or read >= READ_BYTES or len(rows) >= limit:
            break
    return rows, place


def activity_piece(state: ServiceState, place: Place, limit: int) -> Piece:
    """Observation domains in short."""
    view, rows = state.view, list[bytes]()
    names, now_ns = view.listener_names(), time.monotonic_ns()
    for worker, last in sorted(view.flow_extent().items()):
        if worker < place[0]:
            continue
        begin = place[1] + 1 if worker == place[0] else 1
        end = min(last, begin + min(SHORT, limit - len(rows)) - 1)
        for found in view.flow_activity(worker, range(begin, end + 1)):
            if found.datagrams:  # else it was carried here and nothing came yet
                rows.append(orjson.dumps(activity.active(found, worker, names, now_ns)))
        place = (worker, max(begin - 1, end))
        if end < last or len(rows) >= min(SHORT, limit):
            return rows, place
    return rows, None


def templates_piece(state: ServiceState, place: Place, limit: int, exporter: str = "") -> Piece:
    """Observation domains with their templates. A domain that does not fit goes on in the next piece, as a row of its
    own with the same `place`.
    """
    rows, size = list[bytes](), 0
    for _ in range(LOOKED):
        worker, number, after = place
        session, there = _following(state, (worker, number - 1, -1) if after >= 0 else place)
        if session is None:
            return rows, None
        if there[:2] != (worker, number):
            after = -1
        place = there
        if (session.templates or session.options_templates) and exporter in ("", session.address):
            row, stopped = _templates_row(state, session, after, PIECE_BYTES - size)
            place = (*place[:2], stopped)
            if row:
                rows.append(row)
                size += len(row)
        if size >= PIECE_BYTES or len(rows) >= limit:
            break
    return rows, place


def shares_piece(state: ServiceState, place: Place, limit: int, receiver: str, pools: frozenset[str]) -> Piece:
    """Observation domains whose exporter has the receiver in its rules, directly or through one of the pools."""
    view, rows, size = state.view, list[bytes](), 0
    names = view.listener_names()
    for _ in range(LOOKED):
        session, place = _following(state, place)
        if session is None:
            return rows, None
        listener = names.get(session.listener, "")
        if listener and not session.unmatched:
            route = view.route(address_bytes(session.address), session.port, listener)
            row = shares.share(session, listener, route, receiver, pools)
            if row is not None:
                rows.append(orjson.dumps(row))
                size += len(rows[-1])
        if size >= PIECE_BYTES or len(rows) >= limit:
            break
    return rows, place


def _templates_row(state: ServiceState, session: Domain, after: int, room: int) -> tuple[bytes, int]:
    """A domain's row with templates above `after`, and the last id in it if there are more, else -1."""
    items, size, stopped = list[bytes](), 0, -1
    for item in state.view.flow_templates(session.worker, session.number, after):
        if size >= room and items:
            stopped = after
            break
        items.append(orjson.dumps(templates.template(item, session.protocol)))
        size += len(items[-1])
        after = item.id
    if not items:
        return b"", -1
    return orjson.dumps(templates.taught_by(session))[:-1] + b',"templates":[' + b",".join(items) + b"]}", stopped


def _following(state: ServiceState, place: Place) -> tuple[Domain | None, Place]:
    """The domain behind a place, and its own place."""
    sessions, _ = state.view.domains(place[0], place[1], 1)
    if not sessions:
        return None, place
    return sessions[0], (sessions[0].worker, sessions[0].number, -1)


def history_piece(state: ServiceState, place: Place, limit: int, kind: Kind, window: Window, name: str) -> Piece:
    """Rates of the last minutes, of all or of one by name. place: number of the last series."""
    rows, size = list[bytes](), 0
    for number, series in state.history.series(kind, window, place[0], name):
        if size >= PIECE_BYTES or len(rows) >= limit:
            return rows, place
        rows.append(orjson.dumps(series))
        size += len(rows[-1])
        place = (number,)
    return rows, None
