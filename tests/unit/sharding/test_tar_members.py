"""The scan of a tar's headers, against tarfile."""

import io
import os
import tarfile
import uuid

import fsspec
import pytest

from sharding.sources.base import CORRUPT, PairError
from sharding.sources.tar_members import scan_tar
from sharding.sources.tree import Tree
from tests.unit.sharding.terramesh_archive import write_tar

MEMBERS = {f"tile_{i:03d}.zarr.zip": bytes([i]) * (300 * i + 1) for i in range(30)}
LONG = "long/" * 40 + "name_ö.zarr.zip"


def by_tarfile(path) -> dict[str, tuple[int, int]]:
    with tarfile.open(path) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar if info.isfile()}


def scan(path) -> dict[str, tuple[int, int]]:
    return dict(scan_tar(Tree(str(path.parent)), path.name)[0])


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_tarfile_finds_them(tmp_path, kind):
    path = tmp_path / "shard.tar"
    with tarfile.open(
        path, "w", format=kind, pax_headers={"comment": "x"} if kind == tarfile.PAX_FORMAT else None
    ) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "tile_001.zarr.zip" if kind == tarfile.USTAR_FORMAT else LONG
        tar.addfile(link)
        names = [*MEMBERS, "empty", "folder/" + "n" * 95]
        names += [] if kind == tarfile.USTAR_FORMAT else [LONG]
        for name in names:
            info = tarfile.TarInfo(name)
            content = MEMBERS.get(name, b"" if name == "empty" else b"some")
            info.size, info.mtime = len(content), 1.5
            tar.addfile(info, io.BytesIO(content))
    assert scan(path) == by_tarfile(path)
    assert len(scan(path)) == len(names)


def test_a_member_beyond_8_gib_is_found(tmp_path):
    path = tmp_path / "shard.tar"
    info = tarfile.TarInfo("large")
    info.size = 9 << 30
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + info.size)  # a hole, which takes no space
        file.seek(0, os.SEEK_END)
        file.write(tarfile.TarInfo("after").tobuf() + bytes(1024))
    assert scan(path) == {"large": (512, 9 << 30), "after": (1024 + (9 << 30), 0)}


def test_a_name_that_occurs_twice_is_told(tmp_path):
    write_tar(tmp_path / "shard.tar", [("a", b"1"), ("b", b"2"), ("./a", b"3")])
    members, twice = scan_tar(Tree(str(tmp_path)), "shard.tar")
    assert set(members) == {"a", "b"}
    assert twice == ["a"]


def test_an_object_store_gives_the_same(tmp_path):
    write_tar(tmp_path / "shard.tar", MEMBERS)
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{url}/shard.tar", (tmp_path / "shard.tar").read_bytes())
    assert dict(scan_tar(Tree(url), "shard.tar")[0]) == by_tarfile(tmp_path / "shard.tar")


def test_small_members_in_an_object_store_share_requests(tmp_path, monkeypatch):
    write_tar(tmp_path / "shard.tar", {name: b"small" for name in MEMBERS})
    url = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{url}/shard.tar", (tmp_path / "shard.tar").read_bytes())
    tree, asked = Tree(url), []
    read_range = tree.store.read_range
    monkeypatch.setattr(tree.store, "read_range", lambda *a: asked.append(a) or read_range(*a))
    assert len(scan_tar(tree, "shard.tar")[0]) == len(MEMBERS)
    assert len(asked) == 1


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + b"?" * 20 + content[at + 20 :]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda content: content[:20_000], r"ends at byte \d+, the tar at 20000: it is cut"),
        (lambda content: content[: content.index(b"tile_020") + 100], "without the zeros that end a tar"),
        (lambda content: content[: content.index(b"tile_020")], "without the zeros that end a tar"),
        (lambda content: damaged(content, content.index(b"tile_020")), "checksum of the header at byte"),
        (lambda content: damaged(content, content.index(b"tile_020") + 140), "is no header of a tar"),
        (lambda content: b"", "without the zeros that end a tar"),
        (lambda content: b"\x1f\x8b" + content, "is no header of a tar"),
    ],
)
def test_a_broken_tar_is_refused_and_not_taken_for_a_short_one(tmp_path, break_it, message):
    path = tmp_path / "shard.tar"
    write_tar(path, MEMBERS)
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(PairError, match=message + r".*; fetch the tar again") as caught:
        scan(path)
    assert (caught.value.reason, caught.value.file) == (CORRUPT, "shard.tar")
