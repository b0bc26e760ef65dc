"""Ranges through obstore, a client in Rust: about 0.6 of s3fs's CPU for the same bytes.

Buckets, endpoints, timeouts and credentials are those that fsspec's file system would use.
"""

import datetime
import os
import re
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pipeline.stream.holding import Bytes
from pipeline.stream.lent_memory import MemoryPool
from sharding.errors import ConfigError
from sharding.store import Store

_LONGEST: Final = datetime.timedelta(minutes=10)
"""Of one request: what comes slowly, but comes, is waited for."""
_RETRIES: Final[Any] = {"max_retries": 0}
"""Of its own; `Store.ask` is patient, and counts."""
_CREDENTIALS_LAST: Final = datetime.timedelta(minutes=15)
"""obstore asks for them again when five minutes are left, so with a shorter time before each request, 20 ms of CPU."""
_CODE: Final = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*)</Message>)?")
_REFUSALS: Final = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")
"""Codes that AWS sends with a status of 400, which obstore takes for an error of no kind."""


class ObstoreRanges:
    """Reads ranges of one store's files; usable from any thread."""

    def __init__(self, store: Store, memory: MemoryPool) -> None:
        try:
            import obstore
        except ImportError as error:
            raise ConfigError("client is obstore, which is not installed; pip install obstore") from error
        self._get_range = obstore.get_range
        self._store = store
        self._memory = memory
        if store.is_local or "memory" in store.fs.protocol:
            raise ConfigError(f"client is obstore, which cannot read {store.url}; use client fsspec")
        self._bucket_name, _, self._prefix = store.root.partition("/")
        self._opened = self._open(store.fs)

    def __call__(self, path: str, start: int, end: int, again: Callable[[BaseException], None]) -> Bytes:
        """Bytes [start, end) of `path`; errors as `Store.read_range`."""
        key = f"{self._prefix}/{path}" if self._prefix else path

        def read() -> Any:
            fs, bucket = self._opened
            if self._store.fs is not fs:  # with new credentials; see `Store.ask`
                fs, bucket = self._opened = self._open(self._store.fs)
            try:
                content = self._get_range(bucket, key, start=start, end=end)
            except Exception as error:
                raise _as_of_python(error) from error
            if len(content) != end - start:
                raise OSError(f"it gave {len(content)} of the bytes {start} to {end}: it is cut short")
            return content

        came = self._store.ask("read", path, read, again)
        # Obstore's own memory is used again when it is let go of at once.
        content = self._memory.lend(end - start)
        np.copyto(content, np.frombuffer(came, np.uint8))
        return content

    def _open(self, fs: Any) -> tuple[Any, Any]:
        if self._store.is_s3:
            return fs, _open_s3(fs, self._bucket_name)
        from obstore.store import from_url

        url = f"{self._store.url.partition('://')[0]}://{self._bucket_name}"
        return fs, from_url(url, client_options=_client_options(fs), retry_config=_RETRIES)


def _as_of_python(error: Exception) -> Exception:
    """Obstore's error as s3fs would raise it, in one sentence: it prints all of its state."""
    if not type(error).__module__.startswith("obstore"):
        return error
    text = str(error).partition("\n\nDebug source")[0]
    code = _CODE.search(text)
    if code:
        text = f"{code[1]}: {code[2]}" if code[2] else code[1]
    is_refused = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    if is_refused or (code and code[1] in _REFUSALS):
        return PermissionError(text)
    return OSError(text)


def _client_options(fs: Any) -> Any:
    config = getattr(fs, "config_kwargs", None) or {}
    return {
        "connect_timeout": datetime.timedelta(seconds=config.get("connect_timeout", 10)),
        "read_timeout": datetime.timedelta(seconds=config.get("read_timeout", 30)),
        "timeout": _LONGEST,
        "allow_http": True,
    }


def _open_s3(fs: Any, bucket: str) -> Any:
    from obstore.store import S3Store

    options = fs.storage_options
    client_kwargs = options.get("client_kwargs") or {}
    endpoint = (
        getattr(fs, "endpoint_url", None)
        or client_kwargs.get("endpoint_url")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
    )
    region = client_kwargs.get("region_name") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    config: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    config |= {"client_options": _client_options(fs), "retry_config": _RETRIES}
    if options.get("anon"):
        return S3Store(bucket, skip_signature=True, **config)
    provider: Any = lambda: _credentials(options, bucket)  # noqa: E731
    return S3Store(bucket, credential_provider=provider, **config)


def _credentials(options: dict[str, Any], bucket: str) -> dict[str, Any]:
    """Key and secret: as given to fsspec, or as botocore finds them (environment, files, instance)."""
    from botocore.session import Session

    expires = datetime.datetime.now(datetime.UTC) + _CREDENTIALS_LAST
    if options.get("key"):
        found = (options["key"], options.get("secret"), options.get("token"))
    else:
        credentials = Session(profile=options.get("profile")).get_credentials()
        if credentials is None:
            raise ConfigError(
                f"no credentials for {bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )
        frozen = credentials.get_frozen_credentials()
        found = (frozen.access_key, frozen.secret_key, frozen.token)
    return {"access_key_id": found[0], "secret_access_key": found[1], "token": found[2], "expires_at": expires}
