"""A Kubernetes Service is followed: lists, events, and everything that goes wrong between a pod and its API server."""

from __future__ import annotations

import itertools
import logging
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from samplicator.cluster import api, follower
from samplicator.cluster.api import Account
from samplicator.cluster.follower import Follower, Picture
from samplicator.cluster.services import MAX_PODS, Services
from samplicator.config.address import address_text
from samplicator.config.kubernetes import ServicePort, parse_service_port
from samplicator.config.model.loaded import Loaded
from samplicator.config.toml.load import parse_toml
from samplicator.plan.pods import Pods
from support.apiserver import NAMESPACE, SERVICE, ApiServer, api_server, endpoint, make_certificates, make_slice, port

FLOW = parse_service_port(f"k8s://{NAMESPACE}/{SERVICE}:flow")
NUMBER = parse_service_port(f"k8s://{NAMESPACE}/{SERVICE}:9995")
TEXT = f"""
[[listener]]
name = "in"
listen = ["127.0.0.1:2055"]
[[receiver]]
name = "siem"
to = "{FLOW.text}"
[[rule]]
to = ["siem"]
"""


def loaded(text: str = TEXT) -> Loaded:
    return parse_toml(text.encode(), "f")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


@pytest.fixture
def server(tmp_path: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    shutil.copytree(certificates, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(follower, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(follower, "LONGEST_PAUSE", 0.4)
    with api_server(tmp_path) as server:
        yield server


class Following:
    """The Services of a configuration, at a server."""

    def __init__(self, server: ApiServer, text: str = TEXT) -> None:
        self.changes = 0
        self.services = Services(self.changed, Account(str(server.folder), server.environ))
        self.loaded = loaded(text)
        self.services.begin(self.loaded)
        self.services.wait(20)
        self.services.adopt(self.loaded)

    def changed(self) -> None:
        self.changes += 1

    def pods(self, wanted: ServicePort = FLOW, family: int = 0) -> Pods:
        return self.services.pods(wanted, family)

    def shown(self, wanted: ServicePort = FLOW, family: int = 0) -> dict[int, str]:
        """Name and place of the pods by number."""
        found = self.pods(wanted, family).pods
        return {pod.number: f"{pod.name} {address_text(pod.address)}:{pod.port}" for pod in found}

    def why(self) -> str:
        self.pods()
        return self.services.readings()[0].why


@pytest.fixture
def follow(server: ApiServer) -> Iterator[Callable[..., Following]]:
    begun: list[Following] = []

    def begin(text: str = TEXT) -> Following:
        begun.append(Following(server, text))
        return begun[-1]

    yield begin
    for each in begun:
        each.services.close()


def wait_for(what: Callable[[], object], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "did not become true"
        time.sleep(0.02)


A, B, C = endpoint("c-0", "10.0.0.10"), endpoint("c-1", "10.0.0.11"), endpoint("c-10", "10.0.0.12")


def test_list_and_events(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.page = 1  # the list comes in pages
    server.set(make_slice("a", C, B), make_slice("b", A), make_slice("c"))
    it = follow()
    assert it.shown() == {0: "c-0 10.0.0.10:9995", 1: "c-1 10.0.0.11:9995", 2: "c-10 10.0.0.12:9995"}
    lists = [request for request in server.requests if "watch" not in request]
    assert len(lists) == 3
    assert all("limit=" in request for request in lists)
    wait_for(lambda: server.watches == 1)
    server.set(make_slice("a", B))
    wait_for(lambda: it.shown() == {0: "c-0 10.0.0.10:9995", 1: "c-1 10.0.0.11:9995"})
    server.remove("b")
    wait_for(lambda: it.shown() == {1: "c-1 10.0.0.11:9995"})
    new = endpoint("c-7", "10.0.0.17")
    server.set(make_slice("d", new))
    wait_for(lambda: it.shown() == {0: "c-7 10.0.0.17:9995", 1: "c-1 10.0.0.11:9995"})
    assert server.watches == 1


def test_a_pod_keeps_its_number_and_another_gets_it(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A, B))
    it = follow()
    server.set(make_slice("a", B, C))
    wait_for(lambda: it.shown() == {0: "c-10 10.0.0.12:9995", 1: "c-1 10.0.0.11:9995"})
    again = endpoint("c-1", "10.0.0.11", uid="another")  # same name, same address: a StatefulSet on a node's network
    before = it.pods()
    server.set(make_slice("a", again, C))
    wait_for(lambda: it.pods() != before)
    assert [pod.uid for pod in it.pods().pods] == ["uid-c-10", "another"]


def test_watch_goes_on_where_it_was(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    server.bookmark()
    wait_for(lambda: server.watches == 1)
    server.cut()
    server.set(make_slice("b", B))  # while nobody watches
    wait_for(lambda: len(it.shown()) == 2)
    assert sum("watch" not in request for request in server.requests) == 1


def test_a_watch_that_the_server_ends_begins_again(
    server: ApiServer, follow: Callable[..., Following], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(follower, "SHORT_SECONDS", 0.1)
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 3)
    server.set(make_slice("a", A, B))
    wait_for(lambda: len(it.shown()) == 2)
    assert sum("watch" not in request for request in server.requests) == 1
    assert server.connections == 1
    assert it.why() == ""


def test_after_gone_the_slices_are_listed_anew(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    server.set(make_slice("b", B))
    wait_for(lambda: len(it.shown()) == 2)
    server.remove("a")
    server.forget()
    wait_for(lambda: it.shown() == {1: "c-1 10.0.0.11:9995"} or it.shown() == {0: "c-1 10.0.0.11:9995"})
    wait_for(lambda: sum("watch" not in request for request in server.requests) == 2)
    wait_for(lambda: it.services.readings()[0].followed)


def test_server_away(server: ApiServer, follow: Callable[..., Following], caplog: pytest.LogCaptureFixture) -> None:
    """The last known pods stay; it is a state; the log says so once; the watch goes on."""
    caplog.set_level(logging.INFO)
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: it.services.readings()[0].followed)
    server.go()
    wait_for(lambda: "does not answer" in it.why())
    assert it.shown() == {0: "c-0 10.0.0.10:9995"}
    assert not it.services.readings()[0].followed
    said = [record.message for record in caplog.records if "not followed" in record.message]
    assert 1 <= len(said) <= 3  # what the system says can change: reset, then refused
    assert all("its last known pods stay in use" in text for text in said)
    server.set(make_slice("a", A, B))
    server.come()
    wait_for(lambda: len(it.shown()) == 2)
    assert it.why() == ""
    assert any("followed again" in record.message for record in caplog.records)


def test_a_new_token_is_used(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    server.token = "second"
    server.cut()
    wait_for(lambda: "401" in it.why())
    assert len(it.shown()) == 1
    server.write_token("second")
    server.set(make_slice("a", A, B))
    wait_for(lambda: len(it.shown()) == 2)


@pytest.mark.parametrize("status", [403, 429, 500])
def test_errors_are_shown(server: ApiServer, follow: Callable[..., Following], status: int) -> None:
    server.status = status
    it = follow()
    assert it.shown() == {}
    assert f"{status}" in it.why()
    assert "\x1b" not in it.why()
    assert ("endpointslices" in it.why()) == (status == 403)
    server.status = 0
    server.set(make_slice("a", A))
    wait_for(lambda: len(it.shown()) == 1)


def test_old_version_of_the_api(server: ApiServer, follow: Callable[..., Following]) -> None:
    """A server before 1.21 has v1beta1 only; there the node is in `topology`, and the conditions know `ready` only."""
    server.versions = {"v1beta1"}
    old = {key: value for key, value in A.items() if key != "nodeName"}
    server.set(make_slice("a", {**old, "topology": {"kubernetes.io/hostname": "node7"}}))
    it = follow()
    assert it.shown() == {0: "c-0 10.0.0.10:9995"}
    assert it.pods().pods[0].node == "node7"
    server.versions = set()
    server.cut()
    wait_for(lambda: "has no EndpointSlices" in it.why())
    server.versions = {"v1"}  # the cluster was upgraded
    server.set(make_slice("a", A, B))
    wait_for(lambda: len(it.shown()) == 2)


def test_another_authority(server: ApiServer, tmp_path: Path, follow: Callable[..., Following]) -> None:
    """Who is not the cluster's API server gets no token."""
    other = tmp_path / "other"
    other.mkdir()
    make_certificates(other)
    shutil.copy(other / "ca.crt", tmp_path / "ca.crt")
    it = follow()
    assert "certificate verify failed" in it.why()
    assert server.requests == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"no JSON\n",
        b"[]\n",
        b"[" * 100_000 + b"\n",
        b'{"type": "MODIFIED"}\n',
        b'{"type": "ERROR", "object": {"code": "x", "message": 7}}\n',
        b'{"metadata": 3, "items": 5}\n',
        b"\xff\xfe\n",
    ],
)
def test_garbage(server: ApiServer, follow: Callable[..., Following], garbage: bytes) -> None:
    """In the list, then in the watch: asked again, with what is known."""
    server.set(make_slice("a", A))
    server.garbage = garbage
    it = follow()
    wait_for(lambda: len(it.shown()) == 1)
    wait_for(lambda: it.services.readings()[0].followed)
    watches = server.watches
    server.garbage = garbage
    wait_for(lambda: server.watches > watches or server.garbage == b"")
    server.set(make_slice("a", A, B))
    wait_for(lambda: len(it.shown()) == 2)


def test_pauses_grow_and_a_watch_that_lasts_ends_that(
    server: ApiServer, follow: Callable[..., Following], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SHORT_SECONDS", 0.3)
    server.set(make_slice("a", A))
    it = follow()
    (one,) = it.services._followers.values()
    wait_for(lambda: server.watches == 1)
    server.status = 500
    server.cut()
    wait_for(lambda: one._failures >= 4)
    asked = len(server.requests)
    time.sleep(1.0)
    assert len(server.requests) - asked <= 6  # pauses of 0.2 to 0.4 s by now
    server.status = 0
    wait_for(lambda: it.services.readings()[0].followed)
    time.sleep(0.5)
    server.cut()  # after a watch that was long enough
    wait_for(lambda: one._failures <= 1)


def test_a_list_without_end(
    server: ApiServer, follow: Callable[..., Following], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "MAX_SLICES", 5)
    server.page = 0
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    assert sum("watch" not in request for request in server.requests) == 5
    assert it.shown() == {}


def test_too_large(server: ApiServer, follow: Callable[..., Following], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_ANSWER", 20_000)
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    server.set(make_slice("b", *[endpoint(f"x-{n}", f"10.1.0.{n}") for n in range(1, 250)]))
    wait_for(lambda: "larger than" in it.why())
    assert it.shown() == {0: "c-0 10.0.0.10:9995"}


def test_bounds(server: ApiServer, follow: Callable[..., Following], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "MAX_ENDPOINTS", 300)
    many = [endpoint(f"x-{n}", f"10.{n >> 8}.{n & 255}.1") for n in range(600)]
    server.set(*(make_slice(f"s{k:03}", *many[k * 100 : k * 100 + 100]) for k in range(6)))
    it = follow()
    found = it.pods()
    assert len(found.pods) == MAX_PODS
    assert "the others get no copies" in found.warning
    for k in range(5):
        server.remove(f"s{k:03}")  # there is room now for what was left out
    wait_for(lambda: {pod.name for pod in it.pods().pods} == {f"x-{n}" for n in range(500, 600)})
    assert it.pods().warning == ""


def test_events_are_read_at_a_bounded_rate(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    begun, events = time.monotonic(), 3 * follower.EVENTS_PER_SECOND
    for each in itertools.islice(itertools.cycle([(A, B), (A,)]), events):
        server.set(make_slice("a", *each))
    server.set(make_slice("a", A, B, C))
    wait_for(lambda: len(it.shown()) == 3)
    assert time.monotonic() - begun >= 2.0


def test_services_that_nobody_names_are_forgotten(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A))
    it = follow()
    wait_for(lambda: server.watches == 1)
    threads = [thread for thread in threading.enumerate() if thread.name == "pods"]
    assert threads
    it.services.adopt(loaded(TEXT.replace(FLOW.text, "192.0.2.1:9995")))
    wait_for(lambda: not any(thread.is_alive() for thread in threads))
    assert it.services.readings() == ()
    assert it.pods().why.endswith("it is not followed")


def test_not_in_a_cluster(tmp_path: Path) -> None:
    services = Services(account=Account(str(tmp_path), {}))
    services.begin(loaded())
    services.wait(10)
    why = services.pods(FLOW, 0).why
    assert why.startswith("the pods of monitoring/collector are not known: samplicator does not run in a pod")
    assert "write HOST:PORT in `to`" in why
    services.close()


def test_stop_while_the_server_is_silent(server: ApiServer) -> None:
    """Nobody waits for a server that says nothing."""
    one = Follower(NAMESPACE, SERVICE, Account(str(server.folder), server.environ), lambda: None)
    one.start()
    assert one.answered.wait(20)
    wait_for(lambda: server.watches == 1)
    one.stop()
    one._thread.join(5)
    assert not one._thread.is_alive()
    assert one.picture == Picture((), "", one.picture.since)


def test_port_by_number(server: ApiServer, follow: Callable[..., Following]) -> None:
    server.set(make_slice("a", A), make_slice("b", B, ports=[port(2055, "other")]))
    it = follow()
    assert it.shown(NUMBER) == {0: "c-0 10.0.0.10:9995"}


def test_a_certificate_authority_without_extensions_is_taken(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many clusters have one. Python 3.13 makes contexts that verify strictly; here every release does."""
    make = ssl.create_default_context

    def strict(*, cafile: str) -> ssl.SSLContext:
        context = make(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    api.Connection(Account(str(server.folder), server.environ)).close()
