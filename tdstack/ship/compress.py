"""Layer tars, compressed for the wire and back: zstd (RFC 8878) or gzip (RFC 1952), streamed.

One version of the libraries gives the same bytes for the same tar, however many threads write
them: both formats are cut into jobs of a fixed size, which are then compressed side by side.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, cast, get_args

import zstandard

from tdstack.assemble.image import LAYER_TYPE
from tdstack.assemble.tar import CHUNK
from tdstack.errors import IntegrityError, UsageError

Compression = Literal["zstd", "gzip", "none"]
MEDIA_TYPES: dict[Compression, str] = {
    "zstd": f"{LAYER_TYPE}+zstd",
    "gzip": f"{LAYER_TYPE}+gzip",
    "none": LAYER_TYPE,
}
# What an image that Docker pushed calls the same bytes.
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_READABLE: dict[str, Compression] = {
    **{media_type: name for name, media_type in MEDIA_TYPES.items()},
    _DOCKER_LAYER: "none",
    f"{_DOCKER_LAYER}.gzip": "gzip",
}
ZSTD_LEVEL, GZIP_LEVEL = 3, 6
_JOB = 1 << 22
_WINDOW = 1 << 15  # how far deflate looks back
_RAW = -15
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time, no system


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most `size` bytes; none at the end."""
        ...


@dataclass(frozen=True)
class Compressed:
    """What a compression wrote: size in bytes, digest as `sha256:<hex>`."""

    media_type: str
    digest: str
    size: int


def compression_of(name: str) -> Compression:
    """Return the compression called `name`.

    Raises: UsageError.
    """
    for known in get_args(Compression):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(
        f"unknown compression {name!r}", where="--compression", expected=", ".join(MEDIA_TYPES)
    )


def compress(
    source: Readable, target: BinaryIO, compression: Compression, diff_id: str, threads: int = 0
) -> Compressed:
    """Write `source`, a layer tar whose sha256 is `diff_id`, to `target`.

    `threads` are those that compress; 0 for one on each CPU.
    Raises: IntegrityError when the tar's bytes are not those of `diff_id`.
    """
    threads = threads or os.cpu_count() or 1
    given, written, size = hashlib.sha256(), hashlib.sha256(), 0
    pieces = _jobs(source, given)
    for piece in _WRITERS[compression](pieces, threads):
        written.update(piece)
        target.write(piece)
        size += len(piece)
    if (got := f"sha256:{given.hexdigest()}") != diff_id:
        raise IntegrityError("a layer of the engine is damaged", expected=diff_id, got=got)
    return Compressed(MEDIA_TYPES[compression], f"sha256:{written.hexdigest()}", size)


def decompressed(stream: Readable, media_type: str) -> Iterator[bytes]:
    """Yield the tar of a layer that was compressed as its media type says.

    Whether the stream ended early is for the digest to say.
    Raises: IntegrityError for a media type that is no layer's, or for bytes that are not in its
    format.
    """
    compression = _READABLE.get(media_type)
    if compression is None:
        raise IntegrityError(
            "a layer of an unknown media type", expected=", ".join(_READABLE), got=media_type
        )
    try:
        yield from _READERS[compression](stream)
    except (zlib.error, zstandard.ZstdError, gzip.BadGzipFile, EOFError) as error:
        raise IntegrityError(
            "a layer is not in the format that its media type names",
            expected=media_type,
            got=str(error),
        ) from error


def _jobs(source: Readable, digest: hashlib._Hash) -> Iterator[bytes]:
    """Yield the source in jobs of one size, however few bytes it gives at a time; hash them."""
    job = bytearray()
    while piece := source.read(_JOB - len(job)):
        digest.update(piece)
        job += piece
        if len(job) == _JOB:
            yield bytes(job)
            job.clear()
    if job:
        yield bytes(job)


def _zstd(pieces: Iterator[bytes], threads: int) -> Iterator[bytes]:
    # With at least one worker the output does not depend on how many there are; zstd's own
    # checksum would be a third one beside the two digests.
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, threads=threads, job_size=_JOB, write_checksum=False
    )
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for piece in pieces:
        yield writer.compress(piece)
    yield writer.flush()


def _gzip(pieces: Iterator[bytes], threads: int) -> Iterator[bytes]:
    """Deflate jobs side by side into one member, each with the end of the one before it."""
    yield _GZIP_HEADER
    check, size, before = 0, 0, b""
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for piece in pieces:
            check, size = zlib.crc32(piece, check), size + len(piece)
            waiting.append(pool.submit(_deflate, piece, before))
            before = piece[-_WINDOW:]
            if len(waiting) > 2 * threads:  # or the whole tar would wait in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    yield zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _RAW).flush(zlib.Z_FINISH)
    yield check.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")


def _deflate(piece: bytes, before: bytes) -> bytes:
    job = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _RAW, zdict=before)
    return job.compress(piece) + job.flush(zlib.Z_SYNC_FLUSH)


def _as_is(pieces: Iterator[bytes], _threads: int) -> Iterator[bytes]:
    return pieces


def _read_zstd(stream: Readable) -> Iterator[bytes]:
    # Read by amount of output: a few bytes of input may stand for gigabytes.
    # A blob may be several frames, as those are that can be read from anywhere.
    reader = zstandard.ZstdDecompressor().stream_reader(
        cast(BinaryIO, stream), read_across_frames=True
    )
    while piece := reader.read(CHUNK):
        yield piece


def _read_gzip(stream: Readable) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=cast(BinaryIO, stream)) as reader:
        while piece := reader.read(CHUNK):
            yield piece


def _read_as_is(stream: Readable) -> Iterator[bytes]:
    while piece := stream.read(CHUNK):
        yield piece


_WRITERS: dict[Compression, Callable[[Iterator[bytes], int], Iterator[bytes]]] = {
    "zstd": _zstd,
    "gzip": _gzip,
    "none": _as_is,
}
_READERS: dict[Compression, Callable[[Readable], Iterator[bytes]]] = {
    "zstd": _read_zstd,
    "gzip": _read_gzip,
    "none": _read_as_is,
}
