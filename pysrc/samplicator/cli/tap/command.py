"""The command `tap`: from its arguments to a stream of events, and to lines, JSON or a pcapng file.

Called by cli.main with the parsed options. Exit status: 0 = ended by Ctrl-C, or after --count events; 1 = the daemon
cannot be reached, ended the stream or refuses it, or the file cannot be written; 2 = wrong arguments, also a receiver
or listener that the daemon does not have, and a file that cannot be created; 128 + N = ended by signal N.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any, BinaryIO, Final, Protocol, TypeVar
from urllib.parse import urlencode

from samplicator.cli.api import Api, Refused, WrongArguments, asked_for
from samplicator.cli.drawing import plain
from samplicator.cli.tap.decode import decode
from samplicator.cli.tap.events import Datagram, End, Open, Tick, parse
from samplicator.cli.tap.facts import Facts
from samplicator.cli.tap.lines import line
from samplicator.cli.tap.memory import Ask, Memory, asking
from samplicator.cli.tap.pcapng import Writer
from samplicator.errors import Unreachable

NO_CONFIGURATION: Final = Open({}, {})
BAD_REQUEST: Final = 400
"""Status of HTTP for what the operator asked for."""

T = TypeVar("T")


def tap(options: Namespace) -> int:
    """See above."""
    try:
        if options.write and options.json:
            raise WrongArguments("--write cannot be combined with --json")
        if options.write == "-" and sys.stdout.isatty():
            raise WrongArguments("--write -: standard output is a terminal; pipe it to a program, or name a file")
        return _Tap(asked_for(options), options).run()
    except WrongArguments as error:
        _complain(error)
        return 2
    except Refused as error:
        wrong = error.status == BAD_REQUEST and error.told
        _complain(error.told if wrong else error)
        return 2 if wrong else 1
    except Unreachable as error:
        _complain(error)
        return 1


def _page(options: Namespace) -> str:
    """The path and query of the stream."""
    words = {key: getattr(options, key) for key in ("exporter", "receiver", "listener") if getattr(options, key)}
    drops = {"drops": "true"} if options.drops else {}
    count = {"count": options.count} if options.count else {}
    return f"/api/v1/tap?{urlencode({**words, **drops, 'rate': options.rate, **count})}"


def _complain(error: object) -> None:
    print(f"error: {plain(error)}", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    print(plain(text), file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------- the stream


class _Tap:
    """One stream, from its first event to its summary."""

    def __init__(self, api: Api, options: Namespace) -> None:
        self._api = api
        self._options = options
        self._stop = _Stop()
        self._config = NO_CONFIGURATION
        self._opened = False
        self._target: _Target | None = None
        self._shown = 0
        self._unshown = 0

    def run(self) -> int:
        """The exit status. Raises Unreachable and WrongArguments before the first event, and BrokenPipeError."""
        status = 1
        with self._stop, contextlib.closing(self._api), contextlib.ExitStack() as stack:
            lines = stack.enter_context(contextlib.closing(self._api.stream(_page(self._options))))
            try:
                status = self._follow(lines)
            except BrokenPipeError:  # what reads it has ended: so does this, quietly
                with contextlib.suppress(OSError):
                    self._close()
                raise
            except Unreachable as error:
                if not self._opened:
                    raise
                _complain(error)
            except ValueError as error:
                _complain(f"{self._api.name}: an event has an unexpected form ({error})")
            except OSError as error:
                self._complain_of_file(error)
            try:
                self._close()
            except BrokenPipeError:
                raise
            except OSError as error:
                self._complain_of_file(error)
                status = 1
            if self._opened:
                self._summarize()
        return status

    def _follow(self, lines: Iterator[bytes]) -> int:
        """Until the end, whoever makes it. Raises ValueError, OSError, Unreachable and WrongArguments."""
        count = self._options.count
        while True:
            text = self._stop.wait(lines)
            if self._stop.number:
                return 0 if self._stop.number == signal.SIGINT else 128 + self._stop.number
            done = count and self._shown >= count
            if text is None:
                if not done:
                    _complain(f"{self._api.name}: the daemon closed the stream")
                return 0 if done else 1
            value, event = parse(text)
            if isinstance(event, Datagram):
                if not done:
                    self._shown += 1
                    self._begun().datagram(value, event, self._config)
                continue
            self._begun(event).other(value, event)
            if isinstance(event, End) and not done:
                _complain(f"{self._api.name}: the daemon ended the stream: {event.reason or 'no reason is known'}")
            if isinstance(event, End) or done:  # the last tick says how many were not shown
                return 0 if done else 1

    def _begun(self, event: object = None) -> _Target:
        """Where to write to, which is opened with the first event. Keeps what the event says."""
        if self._target is None:
            self._target = self._make()
        if isinstance(event, Open):
            if self._opened and event != self._config:
                _note("listeners or receivers have changed")
            self._config, self._opened = event, True
        if isinstance(event, Tick):
            if event.unshown and not self._unshown:
                _note(f"not all is shown: more than --rate {self._options.rate} per worker, or more than is read here")
            self._unshown = event.unshown
        return self._target

    def _make(self) -> _Target:
        """Raises WrongArguments."""
        options = self._options
        if options.write:
            target: _Target = _Capture(_create(options.write), own=options.write != "-")
        else:
            memory = Memory(self._asking(), _note)
            target = _Objects(memory) if options.json else _Lines(memory)
        if options.write != "-" and not options.json:
            _note(f"{self._api.name}: at most {options.rate} events per second and worker; Ctrl-C ends it")
        return target

    def _asking(self) -> Ask:
        """Of a memory; a signal ends it."""
        ask = asking(self._api)

        def rows(exporter: str) -> Iterator[Any]:
            found = ask(exporter)
            while (row := self._stop.wait(found)) is not None:
                yield row

        return rows

    def _close(self) -> None:
        """Raises OSError."""
        if self._target is not None:
            self._target.close()

    def _complain_of_file(self, error: OSError) -> None:
        _complain(f"{self._options.write or 'standard output'}: {error.strerror or error}")

    def _summarize(self) -> None:
        where = f"{self._options.write}: " if self._options.write not in ("", "-") else ""
        _note(f"{where}{self._shown} shown, {self._unshown} not shown")


class _Stopped(Exception):
    """A signal came while the stream was waited for."""


class _Stop:
    """Signals end the command, but never in the middle of what it writes. A second one ends the process at once, since
    a pipe that nobody reads would keep it for ever. number: of the signal, 0 = none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                self._before[number] = signal.signal(number, self._take)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, items: Iterator[T]) -> T | None:
        """The next one; None = there is none, or a signal came."""
        try:
            self._waiting = True
            item = None if self.number else next(items, None)
            self._waiting = False
        except _Stopped:
            return None
        finally:
            self._waiting = False
        return item

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if self._waiting:
            self._waiting = False
            raise _Stopped


# ---------------------------------------------------------------------------------------------------- where to


class _Target(Protocol):
    """Where events are written to. Raises OSError."""

    def datagram(self, value: Mapping[str, Any], event: Datagram, config: Open) -> None:
        """A datagram or copy. value: as the daemon sent it."""

    def other(self, value: Mapping[str, Any], event: Open | Tick | End | None) -> None:
        """Any other event; at least one a second."""

    def close(self) -> None:
        """All is written after it."""


class _Lines:
    """For people."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def datagram(self, value: Mapping[str, Any], event: Datagram, config: Open) -> None:
        print(line(event, _facts(event, self._memory, config), config))

    def other(self, value: Mapping[str, Any], event: Open | Tick | End | None) -> None:
        sys.stdout.flush()

    def close(self) -> None:
        sys.stdout.flush()


class _Objects:
    """JSON, as the daemon sends it, with `decoded`."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def datagram(self, value: Mapping[str, Any], event: Datagram, config: Open) -> None:
        facts = _facts(event, self._memory, config)
        decoded = None if facts is None else {k: v for k, v in asdict(facts).items() if v is not None and v != ""}
        print(json.dumps({**value, "decoded": decoded}))

    def other(self, value: Mapping[str, Any], event: Open | Tick | End | None) -> None:
        print(json.dumps(value), flush=True)

    def close(self) -> None:
        sys.stdout.flush()


class _Capture:
    """A pcapng file. own: it is closed at the end."""

    def __init__(self, file: BinaryIO, *, own: bool) -> None:
        self._file = file
        self._own = own
        self._writer = Writer(file)

    def datagram(self, value: Mapping[str, Any], event: Datagram, config: Open) -> None:
        self._writer.packet(event, config)

    def other(self, value: Mapping[str, Any], event: Open | Tick | End | None) -> None:
        if isinstance(event, Open):
            self._writer.open(event)
        self._writer.flush()

    def close(self) -> None:
        if self._own:
            self._file.close()
        else:
            self._file.flush()


def _facts(event: Datagram, memory: Memory, config: Open) -> Facts | None:
    """None = the payload was not kept. Only copies from an address of the daemon can have another domain."""
    if event.length and not event.payload:
        return None
    own = event.receiver and any(place.source != "exporter" for place in config.receivers.get(event.receiver, ()))
    return decode(event.payload, memory.session(event.exporter, event.port, any_domain=bool(own)))


def _create(path: str) -> BinaryIO:
    """Opens the file, which only its owner can read; "-" = standard output. Raises WrongArguments."""
    if path == "-":
        return sys.stdout.buffer
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(number).st_mode):
            os.fchmod(number, 0o600)
    except OSError as error:
        raise WrongArguments(f"--write {path}: {error.strerror or error}") from error
    return os.fdopen(number, "wb")
