"""An S3 server for speed: GET, HEAD and ranges of files, anonymous and path-style, on loopback.

nginx where it is installed. Without it, or with a delay before each answer, `python -m benchmarks.stream_server FOLDER
DELAY_MS`: a thread a connection that answers with sendfile, so that the bytes never enter Python. (moto copies the
whole object for every range; netem is not in every kernel.)
"""

import contextlib
import email.utils
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.errors import StorageError

_NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {scratch}/nginx.pid;
error_log {scratch}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
  client_body_temp_path {scratch}/body;
  proxy_temp_path {scratch}/proxy;
  fastcgi_temp_path {scratch}/fastcgi;
  uwsgi_temp_path {scratch}/uwsgi;
  scgi_temp_path {scratch}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    if ($args ~ list-type) {{ return 404; }}
  }}
}}
"""
_START_S = 20
_PIECE = 1 << 24


@contextlib.contextmanager
def serve(folder: Path, bucket: str, delay_ms: float = 0.0) -> Iterator[tuple[str, str]]:
    """URL and kind of a server that shows `folder` as `bucket`; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="stream-server-") as scratch:
        root = Path(scratch) / "root"
        root.mkdir()
        (root / bucket).symlink_to(folder.resolve())
        port = _free_port()
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if nginx and not delay_ms:
            kind, command = "nginx", _nginx(nginx, Path(scratch), root, port)
        else:
            kind = f"own server, {delay_ms:g} ms before each answer" if delay_ms else "own server"
            command = [sys.executable, "-m", "benchmarks.stream_server", str(root), str(port), str(delay_ms)]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        try:
            _wait_for(port, child)
            yield f"http://127.0.0.1:{port}", kind
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _nginx(binary: str, scratch: Path, root: Path, port: int) -> list[str]:
    user = "user root;" if os.geteuid() == 0 else ""
    conf = scratch / "nginx.conf"
    conf.write_text(_NGINX.format(user=user, scratch=scratch, folder=root, port=port))
    return [binary, "-p", str(scratch), "-e", f"{scratch}/error.log", "-c", str(conf)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if child.poll() is not None:
            said = child.stderr.read().decode() if child.stderr else ""
            raise StorageError(f"the S3 server of the benchmark ended at once: {said.strip()[-300:]}")
        time.sleep(0.05)
    raise StorageError(f"the S3 server of the benchmark does not answer after {_START_S} s")


class _Handler(socketserver.StreamRequestHandler):
    """Keep-alive HTTP/1.1, as much of it as S3's clients use to read."""

    server: "_Server"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            while line := self.rfile.readline():
                method, target, _ = line.decode("latin-1").split()
                headers = {}
                while (header := self.rfile.readline()) not in (b"\r\n", b"\n", b""):
                    name, _, value = header.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                if self.server.delay_s:
                    time.sleep(self.server.delay_s)
                self._answer(method, unquote(urlsplit(target).path), headers)

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> None:
        file = self.server.root / path.lstrip("/")
        if method not in ("GET", "HEAD") or ".." in path or not file.is_file():
            body = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
            self._head(404, len(body), "Content-Type: application/xml")
            self.wfile.write(b"" if method == "HEAD" else body)
            return
        with file.open("rb") as content:
            facts = os.fstat(content.fileno())
            start, end = _range(headers.get("range", ""), facts.st_size)
            extra = [
                f"Last-Modified: {email.utils.formatdate(facts.st_mtime, usegmt=True)}",
                f'ETag: "{facts.st_mtime_ns:x}-{facts.st_size:x}"',
                "Accept-Ranges: bytes",
                "Content-Type: application/octet-stream",
            ]
            if "range" in headers:
                extra.append(f"Content-Range: bytes {start}-{end - 1}/{facts.st_size}")
            self._head(206 if "range" in headers else 200, end - start, *extra)
            if method == "HEAD":
                return
            self.wfile.flush()
            while start < end:
                start += os.sendfile(self.connection.fileno(), content.fileno(), start, min(_PIECE, end - start))

    def _head(self, status: int, length: int, *extra: str) -> None:
        reason = {200: "OK", 206: "Partial Content", 404: "Not Found"}[status]
        lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {length}", "Connection: keep-alive", *extra, "", ""]
        self.wfile.write("\r\n".join(lines).encode())


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, port: int, delay_s: float) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root, self.delay_s = root, delay_s

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed


def _range(header: str, size: int) -> tuple[int, int]:
    if not header:
        return 0, size
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1 if last else size, size)


if __name__ == "__main__":
    folder, port, delay_ms = sys.argv[1:]
    _Server(Path(folder), int(port), float(delay_ms) / 1000).serve_forever()
