"""What is in compressed files and archives, a chunk at a time.

What a file is, its first bytes tell, whatever it is called. An archive within an archive is opened
as well, so many deep; what cannot be opened is named, since nothing is known of what is in it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from saga.personal.needle import CHUNK_BYTES

DEPTH_MAX: Final = 5
"""Archives in archives."""
HEAD_BYTES: Final = 512
"""What tells an archive: a tar says so at 257."""
_SQLITE: Final = b"SQLite format 3\0"
_NOT_OPENED: Final = {
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
    b"LZIP": "lzip",
    b"age-encryption.org/": "age",
    b"-----BEGIN AGE ENCRYPTED FILE": "age",
    b"-----BEGIN PGP MESSAGE": "PGP",
    b"Salted__": "OpenSSL",
    b"LUKS\xba\xbe": "LUKS",
    b"QFI\xfb": "QEMU",
}
_DUMP: Final = b"PGDMP"
_REMEMBERED_BYTES: Final = 4 * tarfile.RECORDSIZE
"""More than a tar is read ahead by."""

Unopened = Callable[[str, str], None]
"""Is told of an archive that cannot be opened: its name, and why."""
Part = tuple[str, Iterator[bytes]]
"""What it is called, and its bytes. They are to be taken before the next part is."""

_DAMAGED: Final = (
    OSError,
    EOFError,
    RuntimeError,  # a zip that is encrypted
    NotImplementedError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class _Rewound(io.RawIOBase):
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def parts_of_file(path: Path, unopened: Unopened) -> Iterator[Part]:
    """What is in an archive; nothing if the file is none. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        file.seek(0)
        if head.startswith(_DUMP):
            yield from _of_dump(path, unopened)
        elif _kind(head) is not None:
            yield from _parts(str(path), file, head, unopened, 1)
        else:
            _tell_unopened(str(path), head, unopened)


def _parts(
    name: str, stream: IO[bytes], head: bytes, unopened: Unopened, depth: int
) -> Iterator[Part]:
    """What is in a stream that begins with `head`, which is not read yet."""
    kind = _kind(head)
    if depth > DEPTH_MAX:
        unopened(name, f"it is in {DEPTH_MAX} archives, one in the other")
        return
    try:
        if kind == "zip":
            yield from _of_zip(name, stream, unopened, depth)
        elif kind == "tar":
            yield from _of_tar(name, stream, unopened, depth)
        elif kind == "zstd":
            with _zstd_opened(name, stream, unopened) as inner:
                if inner is not None:
                    yield from _within(f"{name}!", inner, unopened, depth)
        elif kind is not None:
            with _decompressed(kind, stream) as inner:
                yield from _within(f"{name}!", inner, unopened, depth)
    except _DAMAGED as error:
        unopened(name, f"cannot open this {kind}: {str(error) or type(error).__name__}")


def _decompressed(kind: str, stream: IO[bytes]) -> IO[bytes]:
    # They are streams of bytes, and typeshed says so of none.
    opened: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[kind]
    inner: IO[bytes] = opened(stream, "rb")
    return inner


def _within(name: str, stream: IO[bytes], unopened: Unopened, depth: int) -> Iterator[Part]:
    """A stream of an archive: as it is, or what is in it."""
    head = _exactly(stream, HEAD_BYTES)
    rest: IO[bytes] = io.BufferedReader(_Rewound(head, stream))
    kind = _kind(head)
    _tell_unopened(name, head, unopened)
    if head.startswith(_SQLITE):
        unopened(name, "its bytes were looked at, not its rows: unpack it, and look by --also")
    if kind is None or (kind == "zip" and not stream.seekable()):
        if kind is not None:
            unopened(name, "it is a zip in a stream, which is read from its end")
        yield name, _whole(name, rest, unopened)
    elif kind == "zip":
        stream.seek(0)
        yield from _parts(name, stream, head, unopened, depth + 1)
    else:
        yield from _parts(name, rest, head, unopened, depth + 1)


def _of_zip(name: str, stream: IO[bytes], unopened: Unopened, depth: int) -> Iterator[Part]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            inner = f"{name}!{info.filename}"
            # What the directory says is text too.
            yield f"{inner} (its entry)", iter([_entry(info)])
            if info.is_dir():
                continue
            try:
                with archive.open(info) as member:
                    yield from _within(inner, member, unopened, depth)
            except _DAMAGED as error:
                unopened(inner, f"cannot open it: {str(error) or type(error).__name__}")


def _entry(info: zipfile.ZipInfo) -> bytes:
    return b"\0".join((info.filename.encode(), info.comment, info.extra))


def _of_tar(name: str, stream: IO[bytes], unopened: Unopened, depth: int) -> Iterator[Part]:
    read = _Remembered(stream)
    with tarfile.open(fileobj=read, mode="r|") as archive:
        for info in archive:
            inner = f"{name}!{info.name}"
            entry = "\0".join((info.name, info.linkname, info.uname, info.gname))
            yield f"{inner} (its entry)", iter([entry.encode("utf-8", "surrogateescape")])
            member = archive.extractfile(info) if info.isfile() else None
            if member is not None:
                yield from _within(inner, _Forward(member), unopened, depth)  # type: ignore[arg-type]
        end = archive.offset
    # It ends at what is no header, be that zeros or not, and says nothing of it.
    if any(map(any, read.rest_from(end))):
        unopened(name, f"it goes on after {end} bytes, where a part is damaged, or another begins")


class _Remembered(io.RawIOBase):
    """A stream of which the last bytes that were read are known."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = b""
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._offset += len(data)
        self._last = (self._last + data)[-_REMEMBERED_BYTES:]
        buffer[: len(data)] = data
        return len(data)

    def rest_from(self, offset: int) -> Iterator[bytes]:
        """What comes from there on, read by now or not."""
        yield self._last[max(0, len(self._last) - (self._offset - offset)) :]
        yield from chunks_of(self._stream)


class _Forward(io.RawIOBase):
    """A member of a tar that is read forwards only."""

    def __init__(self, member: IO[bytes]) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any) -> int:
        data = self._member.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _zstd_opened(name: str, stream: IO[bytes], unopened: Unopened) -> Iterator[IO[bytes] | None]:
    """With Python's own Zstandard, which 3.14 brought, or the program of that name."""
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        program = shutil.which("zstd")
        if program is None:
            unopened(name, "it is Zstandard: install the program zstd, or use Python 3.14")
            yield None
            return
        yield from _through([program, "-dc"], name, stream, unopened)
        return
    try:
        with zstd.open(stream) as inner:
            yield inner
    except zstd.ZstdError as error:
        unopened(name, f"cannot open this zstd: {error}")


def _of_dump(path: Path, unopened: Unopened) -> Iterator[Part]:
    """The SQL that a copy of a PostgreSQL database stands for."""
    from saga.local.postgres import PostgresError, find_program

    try:
        program = find_program("pg_restore")
    except PostgresError as error:
        unopened(str(path), str(error))
        return
    with path.open("rb") as file:
        for inner in _through([str(program), "--file=-"], str(path), file, unopened):
            yield f"{path}!", chunks_of(inner)


def _through(
    command: list[str], name: str, stream: IO[bytes], unopened: Unopened
) -> Iterator[IO[bytes]]:
    """What a program makes of a stream."""
    import tempfile
    import threading

    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        source, result = process.stdin, process.stdout
        failed: list[Exception] = []
        if source is None or result is None:
            raise RuntimeError("a process without its pipes")

        def feed() -> None:
            try:
                with contextlib.suppress(BrokenPipeError), source:
                    shutil.copyfileobj(stream, source, CHUNK_BYTES)
            except _DAMAGED as error:
                failed.append(error)

        feeding = threading.Thread(target=feed, daemon=True)
        feeding.start()
        try:
            yield result
        finally:
            result.close()
            feeding.join()
            status = process.wait()
            said.seek(0)
            gist = " ".join(said.read(400).decode(errors="replace").split())
        for error in failed:
            unopened(name, f"cannot read it to its end: {str(error) or type(error).__name__}")
        if status:
            unopened(name, f"{Path(command[0]).name} failed: {gist or f'exit status {status}'}")


def _whole(name: str, stream: IO[bytes], unopened: Unopened) -> Iterator[bytes]:
    """What can be had of a stream."""
    try:
        yield from chunks_of(stream)
    except _DAMAGED as error:
        unopened(name, f"cannot read it to its end: {str(error) or type(error).__name__}")


def chunks_of(stream: IO[bytes]) -> Iterator[bytes]:
    """A stream to its end, in pieces."""
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _exactly(stream: IO[bytes], count: int) -> bytes:
    """So many bytes, or all there are."""
    data = b""
    while len(data) < count and (more := stream.read(count - len(data))):
        data += more
    return data


def _tell_unopened(name: str, head: bytes, unopened: Unopened) -> None:
    """Name what begins like an archive of a kind that is not opened here."""
    for magic, kind in _NOT_OPENED.items():
        if head.startswith(magic):
            unopened(name, f"it is a file of {kind}: unpack it, and look by --also")


def _kind(head: bytes) -> str | None:
    """What kind of archive begins like that; None for what is none."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return "zstd"
    if head.startswith(b"BZh"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head[257:262] == b"ustar":
        return "tar"
    return None
