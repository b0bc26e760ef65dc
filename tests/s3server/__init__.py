"""A real S3 server for the tests: OpenStack Swift with s3api, started on free ports, and faults injected before it."""

from tests.s3server.faults import Fault, Faults
from tests.s3server.server import S3Server, why_not_here

__all__ = ["Fault", "Faults", "S3Server", "why_not_here"]
