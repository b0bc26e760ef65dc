"""Runs inside of Swift's proxy, as the first filter of its pipeline: does to a request what the rules say.

Needs nothing of this project: it is imported by Swift's own Python.
"""

import ctypes
import fcntl
import json
import os
import re

import eventlet

_BODY = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected by the test</Message></Error>'
_ANSWERS = {
    "503": ("503 Slow Down", "SlowDown"),
    "500": ("500 Internal Server Error", "InternalError"),
    "denied": ("403 Forbidden", "AccessDenied"),
    "expired": ("403 Forbidden", "ExpiredToken"),
    "expired400": ("400 Bad Request", "ExpiredToken"),  # what AWS itself answers
}
_SLICE_S = 0.05


class FaultFilter:
    """WSGI in, WSGI out."""

    def __init__(self, app, rules, log):
        self.app, self.rules, self.log = app, rules, log
        self.counts = {}

    def __call__(self, environ, start_response):
        fault = self._fault(environ)
        if fault is None:
            return self.app(environ, start_response)
        if fault["do"] in _ANSWERS:
            status, code = _ANSWERS[fault["do"]]
            body = _BODY.format(code=code).encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
        if fault["do"] == "hang":
            eventlet.sleep(fault["amount"])
            return self.app(environ, start_response)
        environ["eventlet.minimum_write_chunk_size"] = 1  # what was sent before the fault has left
        return _changed(self.app(environ, start_response), fault, environ["eventlet.input"]._sock)

    def _fault(self, environ):
        with open(self.rules) as file:
            rules = json.load(file)
        for number, fault in enumerate(rules["faults"]):
            if environ["REQUEST_METHOD"] != fault["method"] or not re.search(fault["path"], environ["PATH_INFO"]):
                continue
            if not re.search(fault["token"], environ.get("HTTP_X_AMZ_SECURITY_TOKEN", "")):
                continue
            key = (rules["set"], number)
            self.counts[key] = self.counts.get(key, 0) + 1
            if fault["skip"] < self.counts[key] <= fault["skip"] + fault["times"]:
                self._write(rules["set"], fault, environ)
                return fault
        return None

    def _write(self, number, fault, environ):
        line = {"set": number, "do": fault["do"], "method": environ["REQUEST_METHOD"], "path": environ["PATH_INFO"]}
        with open(self.log, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _changed(body, fault, connection):
    """The body with what `fault` does to it when byte `amount` comes, or all along."""
    do, amount, sent = fault["do"], int(fault["amount"]), 0
    for chunk in body:
        if do == "slow":
            yield from _in_slices(chunk, amount)
            continue
        place = amount - sent
        sent += len(chunk)
        if not 0 <= place < len(chunk):
            yield chunk
        elif do == "flip":
            yield chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
        else:
            yield chunk[:place]
            if do == "reset":
                _reset(connection.fileno())
            if do == "stall":
                eventlet.sleep(fault["seconds"])
            raise ConnectionResetError("cut by the test")


def _in_slices(chunk, bytes_per_s):
    size = max(1, int(bytes_per_s * _SLICE_S))
    for place in range(0, len(chunk), size):
        part = chunk[place : place + size]
        eventlet.sleep(len(part) / bytes_per_s)
        yield part


def _reset(descriptor):
    """End a TCP connection with RST instead of FIN: connect(2) to no address does."""
    nowhere = ctypes.create_string_buffer(16)  # sockaddr with AF_UNSPEC
    ctypes.CDLL(None).connect(descriptor, nowhere, 16)


def factory(global_conf, **conf):
    """What paste calls."""
    return lambda app: FaultFilter(app, conf["rules"], conf["log"])
