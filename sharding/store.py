"""One view of every place where data sets lie: a folder, `s3://`, `gs://`, `az://`, `memory://`, all through fsspec.

What is written appears whole or not at all: on a disk by writing beside it, fsync and rename; on an object store an
object exists only once its upload is complete, and is compared with what was sent. A store that fails is asked again
(`sharding.store_retry`); where credentials come from, fsspec's file systems know, and when S3 refuses them they are
read again (`sharding.credentials`).
"""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sharding.credentials import is_refusal, with_renewal
from sharding.errors import DataError, StorageError
from sharding.store_retry import is_of_a_store, patiently
from sharding.upload_check import PART_BYTES, is_stored

T = TypeVar("T")

_PACKAGES: Final = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""What a scheme needs beyond our requirements."""
_TIMEOUTS: Final = {"connect_timeout": 10, "read_timeout": 30}
"""Of S3, in seconds: a stalled connection is given up and asked again. fsspec's own configuration goes before."""
_renewing: Final = threading.Lock()
"""Not the store's own: stores are sent to other processes."""


class Store:
    """The folder or prefix `url`; all paths are relative to it. Errors are StorageError, a missing file DataError."""

    def __init__(self, url: str) -> None:
        self.url = str(url).rstrip("/") or "/"
        scheme = self.url.partition("://")[0]
        try:
            # Listings of an object store are not kept: other processes write there.
            options: dict[str, Any] = (
                {"use_listings_cache": False} if "://" in self.url and scheme not in ("file", "memory") else {}
            )
            if scheme in ("s3", "s3a"):
                configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
                options["config_kwargs"] = _TIMEOUTS | configured
            self.fs, self.root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            package = _PACKAGES.get(scheme)
            advice = f"install it: pip install {package}" if package else "install what it names"
            raise StorageError(f"cannot open {url}: {error}; {advice}") from error
        except ValueError as error:
            raise StorageError(f"cannot open {url}: {error}; known are paths, s3://, gs://, az:// and more") from error
        self.root = self.root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """True when paths are files of this machine."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def is_s3(self) -> bool:
        """True when the files lie in S3 or what speaks like it."""
        return self.url.startswith(("s3://", "s3a://"))

    def full(self, path: str) -> str:
        """The path as the file system knows it."""
        return f"{self.root}/{path}" if path else self.root

    def name(self, path: str) -> str:
        """The path as a message shows it."""
        return f"{self.url}/{path}" if path else self.url

    @contextlib.contextmanager
    def _told(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DataError(f"there is no {self.name(path)}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno and self.is_local:
                raise  # a full or read-only disk keeps its errno and the file's name
            raise self._failed(action, path, error) from error
        except Exception as error:
            # Object stores raise their SDK's own classes; whoever reads the message needs the place, not the brand.
            if not is_of_a_store(error):
                raise
            raise self._failed(action, path, error) from error

    def _failed(self, action: str, path: str, error: Exception) -> StorageError:
        advice = ""
        if is_refusal(error):
            advice = "; renew the credentials where they come from, or ask for access, and give the same command again"
        return StorageError(f"cannot {action} {self.name(path)}: {error or type(error).__name__}{advice}")

    def ask(
        self, action: str, path: str, operation: Callable[[], T], again: Callable[[BaseException], None] | None = None
    ) -> T:
        """The result of an operation; of an object store, asked again while it fails in ways that pass."""
        with self._told(action, path):
            if self.is_local:
                return operation()
            if not self._has_renewable_credentials:
                return patiently(operation, again=again)
            return patiently(lambda: self._with_renewal(operation, again), again=again)

    @property
    def _has_renewable_credentials(self) -> bool:
        options = self.fs.storage_options
        return self.is_s3 and not options.get("anon") and not options.get("key")

    def _with_renewal(self, operation: Callable[[], T], again: Callable[[BaseException], None] | None) -> T:
        used = self.fs

        def renew() -> None:
            nonlocal used
            with _renewing:
                if self.fs is used:  # else another thread has renewed them
                    self.fs = type(used)(**used.storage_options, skip_instance_cache=True)
                    self.fs.retries = used.retries
                used = self.fs

        return with_renewal(operation, renew, again)

    def exists(self, path: str) -> bool:
        """Whether a file `path` is there."""
        return bool(self.ask("look for", path, lambda: self.fs.exists(self.full(path))))

    def size(self, path: str) -> int:
        """Size of `path` in bytes."""
        return int(self.ask("read the size of", path, lambda: self.fs.size(self.full(path))))

    def files(self, path: str = "") -> list[str]:
        """Relative paths of all files below `path`, sorted; empty when there is none."""

        def find() -> list[str]:
            return list(self.fs.find(self.full(path))) if self.fs.exists(self.full(path)) else []

        return sorted(found[len(self.root) + 1 :] for found in self.ask("list", path, find))

    def read(self, path: str) -> bytes:
        """All bytes of `path`."""
        return bytes(self.ask("read", path, lambda: self.fs.cat_file(self.full(path))))

    def size_once(self, path: str) -> int:
        """Size of `path` in bytes; StorageError as soon as the store fails."""
        with self._told("read the size of", path):
            return int(self.fs.size(self.full(path)))

    def read_range(
        self, path: str, start: int, end: int, again: Callable[[BaseException], None] | None = None
    ) -> bytes:
        """Bytes `start` to `end` of `path`; StorageError when the store gives fewer, however often it is asked.

        `again` is told of each failure before the next try, and may end the tries by raising.
        """

        def read() -> bytes:
            content = bytes(self.fs.cat_file(self.full(path), start=start, end=end))
            if len(content) != end - start:
                raise OSError(f"it gave {len(content)} of the bytes {start} to {end}: it is cut short")
            return content

        return self.ask("read", path, read, again)

    def write(self, path: str, content: bytes) -> None:
        """Write a whole small file, atomically."""
        if self.is_local:
            with _appearing_whole(Path(self.full(path))) as partial:
                partial.write_bytes(content)
            return
        self._send(path, content, lambda: self.fs.pipe_file(self.full(path), content))

    def put(self, local: Path, path: str) -> None:
        """Move the finished local file to `path`, atomically; the local file is gone afterwards."""
        if self.is_local:
            with _appearing_whole(Path(self.full(path))) as partial:
                shutil.move(local, partial)
            return
        options = {"chunksize": PART_BYTES} if self.is_s3 else {}
        self._send(path, local, lambda: self.fs.put_file(str(local), self.full(path), **options))
        local.unlink()

    def get(self, path: str, local: Path) -> None:
        """Copy `path` to the local file."""
        if self.is_local:
            with self._told("read", path):
                shutil.copyfile(self.full(path), local)
            return
        self.ask("read", path, lambda: self.fs.get_file(self.full(path), str(local)))

    def copy(self, path: str, new_path: str) -> None:
        """Copy a file of an object store within it."""
        self.ask("copy", path, lambda: self.fs.cp_file(self.full(path), self.full(new_path)))

    def write_new(self, path: str, content: bytes) -> bool:
        """Write a small file that must not be there yet; whether what is there afterwards is `content`.

        Of two that try at the same time one succeeds, where the store knows If-None-Match (S3 does) or is a disk.
        """
        if self.is_local:
            with _appearing_whole(Path(self.full(path)), is_new=True) as partial:
                partial.write_bytes(content)
            return self.read(path) == content

        def put() -> None:
            # A store that does not know the condition overwrites: so what is there is looked for before.
            if self.fs.exists(self.full(path)):
                return
            try:
                self.fs.pipe_file(self.full(path), content, mode="create")
            except OSError as error:
                if not _says_it_is_there(error):
                    raise

        self.ask("write", path, put)
        return self.read(path) == content

    def _send(self, path: str, content: Path | bytes, send: Callable[[], Any]) -> None:
        """Upload, and compare what arrived with what was sent; StorageError when it differs twice."""
        for _ in range(2):
            self.ask("write", path, send)
            if self.ask("compare", path, lambda: is_stored(self.fs, self.full(path), content)):
                return
        raise StorageError(
            f"{self.name(path)} does not hold what was sent to it, twice; the network or the store changes data: "
            "look there, then give the same command again"
        )

    def abort_uploads(self) -> int:
        """End multipart uploads below the root that a killed process began; how many there were."""
        if not self.is_s3:
            return 0
        bucket, _, prefix = self.root.partition("/")

        def abort() -> int:
            found = self.fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads", [])
            for upload in found:
                self.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            return len(found)

        return self.ask("end the unfinished uploads of", "", abort)

    def remove(self, path: str) -> None:
        """Delete a file; nothing happens when it is not there."""
        with contextlib.suppress(DataError):
            self.ask("delete", path, lambda: self.fs.rm_file(self.full(path)))


def _says_it_is_there(error: OSError) -> bool:
    """Whether a conditional write failed because the object is there; s3fs hands S3's 412 on as an OSError."""
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("Error", {}).get("Code") == "PreconditionFailed"


@contextlib.contextmanager
def _appearing_whole(target: Path, is_new: bool = False) -> Iterator[Path]:
    """Gives a path to write to, beside `target`; after the block it is synced to disk and takes the target's place.

    With `is_new`, a target that is there stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if is_new:
            with contextlib.suppress(FileExistsError):
                os.link(partial, target)
        else:
            partial.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(target)  # fsync and write tell of a full disk without a name
        raise
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
