"""Starting and ending Swift: one proxy with s3api and one server each for objects, containers and accounts."""

import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.s3server.faults import Faults

VENV = Path(__file__).resolve().parents[2] / ".swift"
KEY, SECRET = "test:tester", "testing"
_KINDS = ("object", "container", "account")
_START_S = 60

_COMMON = """\
[DEFAULT]
bind_ip = {address}
bind_port = {port}
user = {user}
swift_dir = {conf}
devices = {node}
mount_check = false
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = {pipeline}
"""
_BACKEND = """\
[app:{kind}-server]
use = egg:swift#{kind}
fallocate_reserve = 0
disable_fallocate = true
"""
_PROXY = """\
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:fault]
paste.filter_factory = fault_filter:factory
rules = {rules}
log = {log}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin .reseller_admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
min_segment_size = 5242880
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:copy]
use = egg:swift#copy
"""
_SWIFT = """\
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = gold
default = yes
"""


def why_not_here() -> str:
    """Why the server cannot be started; empty when it can."""
    if not (VENV / "bin" / "swift-proxy-server").exists():
        return "needs the S3 server that make s3-server installs"
    return ""


class S3Server:
    """A running server; a context. Its proxy listens on `address`, the rest on this machine alone."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self.conf = folder, folder / "conf"
        self.conf.mkdir(parents=True)
        self.faults = Faults(folder)
        self._children: list[subprocess.Popen] = []
        ports = _free_ports(4)
        self._address = address
        self.endpoint = f"http://{address}:{ports[0]}"
        self._configure(ports)
        try:
            for kind in (*_KINDS, "proxy"):
                self._start(kind)
            self._wait()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "S3Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """With these variables any command finds the server and may use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @functools.cache  # noqa: B019  a session has one server
    def client(self):
        """boto3's own client: what is there, whatever our code says."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
        )

    def bucket(self, name: str) -> str:
        """A new, empty bucket; its URL."""
        self.faults.set([])
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Every key below a prefix, as the server lists them now."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def settled_keys(self, bucket: str, prefix: str = "", quiet_s: float = 0.5, timeout_s: float = 30) -> list[str]:
        """The keys once they have stayed the same: the server goes on with the last requests of a killed client."""
        end = time.monotonic() + timeout_s
        before = self.keys(bucket, prefix)
        while True:
            time.sleep(quiet_s)
            now = self.keys(bucket, prefix)
            if now == before:
                return now
            assert time.monotonic() < end, f"the keys of {bucket} still change after {timeout_s} s"
            before = now

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, by its key without it; for a bucket to which nobody writes."""
        client = self.client()
        keys = self.keys(bucket, prefix)
        return {key[len(prefix) :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}

    def unfinished_uploads(self, bucket: str) -> list[str]:
        """Keys of multipart uploads that were begun and neither completed nor aborted."""
        return [upload["Key"] for upload in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    def stop(self) -> None:
        """End all processes."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
        shutil.rmtree(self.folder / "node", ignore_errors=True)

    def _configure(self, ports: list[int]) -> None:
        import getpass

        shared = {"user": getpass.getuser(), "conf": self.conf, "node": self.folder / "node"}
        (self.conf / "swift.conf").write_text(_SWIFT)
        for kind, port in zip(_KINDS, ports[1:], strict=True):
            text = _COMMON.format(
                address="127.0.0.1", port=port, pipeline=f"{kind}-server", **shared
            ) + _BACKEND.format(kind=kind)
            (self.conf / f"{kind}-server.conf").write_text(text)
            ring = self.conf / f"{kind}.builder"
            for words in (("create", "1", "1", "0"), ("add", f"r1z1-127.0.0.1:{port}/d1", "1"), ("rebalance",)):
                subprocess.run(
                    [VENV / "bin" / "swift-ring-builder", ring, *words], check=True, capture_output=True, cwd=self.conf
                )
        (self.folder / "node" / "d1").mkdir(parents=True)
        pipeline = "fault gatekeeper cache bulk s3api tempauth copy slo dlo proxy-server"
        proxy = _COMMON.format(address=self._address, port=ports[0], pipeline=pipeline, **shared)
        proxy += _PROXY.format(rules=self.faults.rules, log=self.faults.log)
        (self.conf / "proxy-server.conf").write_text(proxy)

    def _start(self, kind: str) -> None:
        log = (self.folder / f"{kind}.log").open("wb")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "SWIFT_TEST_IN_PROCESS": ""}
        environment = {name: value for name, value in environment.items() if not name.lower().endswith("_proxy")}
        self._children.append(
            subprocess.Popen(
                [VENV / "bin" / f"swift-{kind}-server", self.conf / f"{kind}-server.conf", "-v"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_parent,
            )
        )
        log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            if any(child.poll() is not None for child in self._children):
                raise RuntimeError(f"Swift did not start:\n{self._logs()}")
            try:
                self.client().list_buckets()
            except Exception as error:  # any: refused, reset, not ready
                if time.monotonic() > deadline:
                    raise RuntimeError(f"Swift does not answer ({error}):\n{self._logs()}") from error
                time.sleep(0.1)
            else:
                return

    def _logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))


def _end_with_parent() -> None:
    """A killed pytest leaves no server behind (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for held in sockets:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports
