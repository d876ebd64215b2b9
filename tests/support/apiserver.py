"""A stand-in for a cluster's API server, as far as EndpointSlices go: list in pages, watch with events and bookmarks.

It speaks HTTPS with a certificate of its own authority on a loopback address, wants a bearer token, and does on demand
what real servers do at bad times: it goes away, forgets its history (410), takes another token, answers with an error.
The real one is in tests/deploy/cluster. Used by tests/control and tests/system.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE, SERVICE = "monitoring", "collector"


def endpoint(name: str, address: str, *, uid: str = "", **conditions: bool | None) -> dict[str, Any]:
    """One pod in a slice. conditions: ready (default true), serving, terminating."""
    target = {"kind": "Pod", "name": name, "uid": uid or f"uid-{name}"}
    return {"addresses": [address], "conditions": {"ready": True, **conditions}, "targetRef": target, "nodeName": "n1"}


def port(number: int | None, name: str = "flow", protocol: str = "UDP") -> dict[str, Any]:
    return {"name": name, "port": number, "protocol": protocol}


def make_slice(name: str, *endpoints: dict[str, Any], ports: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    """An EndpointSlice of SERVICE as v1 has it. ports: one, "flow", 9995."""
    return {
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": SERVICE}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [port(9995)] if ports is None else ports,
        **more,
    }


class ApiServer:
    """Slices by name. Set what it is to do, then look at `requests`, the paths with their queries, `watches` and
    `connections`.

    token: the one that it takes. versions: of discovery.k8s.io. status: answers with this error. page: slices in an
    answer, at most. garbage: what it sends in place of the next answer or event.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = {"v1"}
        self.status = 0
        self.page = 1000
        self.garbage = b""
        self.requests: list[str] = []
        self.watches = 0
        self.connections = 0
        self.token = "first"
        self._slices: dict[str, Any] = {}
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._oldest = 0
        self._version = 100
        self._change = threading.Condition()
        self._open: set[Any] = set()
        if not (folder / "ca.crt").exists():
            make_certificates(folder)
        self.write_token("first")
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.come()

    @property
    def environ(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def write_token(self, token: str) -> None:
        """What the kubelet does: the file is another one at once."""
        new = self.folder / "token.new"
        new.write_text(token + "\n")
        new.rename(self.folder / "token")

    # ------------------------------------------------------------------ what it is to do

    def come(self) -> None:
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.crt", self.folder / "server.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def go(self) -> None:
        """It ends, and with it every watch."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.cut()

    def cut(self) -> None:
        """Ends the connections that are open, without a word."""
        with self._change:
            for sock in list(self._open):
                with suppress(OSError):
                    sock.shutdown(2)

    def forget(self) -> None:
        """Its history begins now, as after etcd's compaction: who watches from before gets 410."""
        with self._change:
            self._oldest = self._version = self._version + 10
            self._events = []
            self._change.notify_all()

    def set(self, *slices: dict[str, Any]) -> None:
        """Slices that are new or other ones."""
        with self._change:
            for item in slices:
                name = item["metadata"]["name"]
                self._event("MODIFIED" if name in self._slices else "ADDED", item)
                self._slices[name] = item

    def remove(self, name: str) -> None:
        with self._change:
            self._event("DELETED", self._slices.pop(name))

    def bookmark(self) -> None:
        """Tells the version without a change."""
        with self._change:
            self._event("BOOKMARK", {"kind": "EndpointSlice", "metadata": {}})

    def _event(self, kind: str, item: dict[str, Any]) -> None:
        self._version += 1
        item = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}
        self._events.append((self._version, {"type": kind, "object": item}))
        self._change.notify_all()

    # ------------------------------------------------------------------ what it answers

    def listing(self, query: Mapping[str, str]) -> dict[str, Any]:
        with self._change:
            names = sorted(self._slices)
            start = int(query.get("continue", "0"))
            end = start + min(self.page, int(query.get("limit", "1000")))
            metadata = {"resourceVersion": str(self._version)}
            if end < len(names):
                metadata["continue"] = str(end)
            return {"metadata": metadata, "items": [self._slices[name] for name in names[start:end]]}

    def events(self, version: int, until: float) -> Iterator[bytes]:
        """Lines of a watch that begins after `version`."""
        while True:
            with self._change:
                if version < self._oldest:
                    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
                    yield json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
                    return
                found = [(number, event) for number, event in self._events if number > version]
                if not found and not self.garbage:
                    if not self._change.wait(min(0.2, max(0.0, until - time.monotonic()))) and time.monotonic() > until:
                        return
                    if self._server is None:
                        return
                    continue
                garbage, self.garbage = self.garbage, b""
            if garbage:
                yield garbage
            for number, event in found:
                version = number
                yield json.dumps(event).encode() + b"\n"


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.api._open.add(self.request)
        self.api.connections += 1

    def finish(self) -> None:
        self.api._open.discard(self.request)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        api.requests.append(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        version = parts.path.split("/")[3]
        if api.status:
            self.answer(api.status, {"kind": "Status", "message": f"no\x1b[31m, says the server ({api.status})"})
        elif self.headers["Authorization"] != f"Bearer {api.token}":
            self.answer(401, {"kind": "Status", "message": "Unauthorized"})
        elif version not in api.versions:
            self.answer(404, {"kind": "Status", "message": "the server could not find the requested resource"})
        elif parts.path != f"/apis/discovery.k8s.io/{version}/namespaces/{NAMESPACE}/endpointslices" or (
            query["labelSelector"] != f"kubernetes.io/service-name={SERVICE}"
        ):
            self.answer(403, {"kind": "Status", "message": "endpointslices is forbidden"})
        elif "watch" in query:
            self.stream(int(query["resourceVersion"]), float(query["timeoutSeconds"]))
        elif api.garbage:
            garbage, api.garbage = api.garbage, b""
            self.answer(200, garbage)
        else:
            self.answer(200, api.listing(query))

    def answer(self, status: int, value: dict[str, Any] | bytes) -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def stream(self, version: int, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.api.watches += 1
        for line in self.api.events(version, time.monotonic() + seconds):
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


def make_certificates(folder: Path) -> None:
    """`ca.crt`, `server.crt` and `server.key`: an authority, and a certificate of it for 127.0.0.1."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=cluster", "-days", "30")
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=apiserver")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:kubernetes.default.svc\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
        "-out", "server.crt", "-days", "30", "-extfile", "names",
    )  # fmt: skip


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """`folder` becomes what a pod has of its service account."""
    server = ApiServer(folder)
    try:
        yield server
    finally:
        if server._server is not None:
            server.go()
