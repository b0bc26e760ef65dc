"""Runs inside of Swift's proxy, as the first filter of its pipeline: does to a request what the rules say.

Needs nothing of this project: it is imported by Swift's own Python.
"""

import fcntl
import json
import os
import re

import eventlet

_BODY = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected by the test</Message></Error>'
_ANSWERS = {"503": ("503 Slow Down", "SlowDown"), "500": ("500 Internal Server Error", "InternalError")}


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
            return [body]
        if fault["do"] == "hang":
            eventlet.sleep(fault["amount"])
            return self.app(environ, start_response)
        return _changed(self.app(environ, start_response), fault["do"], int(fault["amount"]))

    def _fault(self, environ):
        with open(self.rules) as file:
            rules = json.load(file)
        for number, fault in enumerate(rules["faults"]):
            if environ["REQUEST_METHOD"] != fault["method"] or not re.search(fault["path"], environ["PATH_INFO"]):
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


def _changed(body, do, amount):
    """The body cut after `amount` bytes and the connection dropped, or the lowest bit of byte `amount` flipped."""
    sent = 0
    for chunk in body:
        if do == "cut" and sent + len(chunk) > amount:
            yield chunk[: max(0, amount - sent)]
            raise ConnectionResetError("cut by the test")
        if do == "flip" and sent <= amount < sent + len(chunk):
            place = amount - sent
            chunk = chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]
        sent += len(chunk)
        yield chunk


def factory(global_conf, **conf):
    """What paste calls."""
    return lambda app: FaultFilter(app, conf["rules"], conf["log"])
