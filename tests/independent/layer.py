"""Parts of layers: published segments, read after docs/formats/layer.md."""

import ctypes
import functools
import os
import struct
from types import SimpleNamespace as Struct

from blake3 import blake3, blake3_many, crc32c
from objects import Damage, require

ZSTD = ctypes.CDLL("libzstd.so.1")
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


class Part:
    """A published part, led to by its trailer and held against the record that names it."""

    def __init__(self, store, name, at, volume, layer, number):
        """`at`: where it begins in that object, if it lies in a pack; else None."""
        self.path, self.name, self.volume, (size, digest) = os.path.join(store, name), name, volume, layer.parts[number]
        self.at = at or 0
        trailer = self.bytes_at(size - 64, 64)
        offset, length, zero, its_digest, zeroes, crc, magic = struct.unpack("<QII32sII8s", trailer)
        is_whole = magic == b"FSLAYEND" and crc == crc32c(trailer[:52]) and (zero, zeroes) == (0, 0)
        require(is_whole, name, "its trailer is not whole")
        require(offset + 32 + length + 64 == size, name, "not as long as its record says")
        require(at is not None or size == os.path.getsize(self.path), name, "not as long as its record says")
        head, body = self.bytes_at(offset, 32), self.bytes_at(offset + 32, length)
        kind, codec, zero, stored, start, count, crc = struct.unpack_from("<BBHIQQI", head)
        require(crc32c(head[:28]) == int.from_bytes(head[28:], "little") and crc == crc32c(body), name, "its footer is not whole")
        require((kind, codec, zero, stored, start) == (0xF0, 0, 0, length, 0), name, "its footer has another head")
        require(digest == its_digest == blake3(b"farside part footer v1\0" + body), name, "not the footer that its record names")
        require(body[8:12] != b"\x01\x00\x01\x00", name, "it is encrypted: nothing here decrypts AES-GCM, which Python does not come with")
        wanted = struct.pack("<8sHHI16sQQQBBH", b"FSLAYPRT", 1, 0, number, volume.id, layer.term, layer.seq, layer.bytes,
                             volume.granule, volume.region - volume.granule, 0)
        require(body[:60] == wanted and body[60:64] == crc32c(wanted).to_bytes(4, "little"), name, "its header is another part's")
        require(self.bytes_at(0, 64) == body[:64], name, "its header is not the one in its footer")
        self.bytes, self.frames, granules, at, head_at = layer.bytes, [], 64 + 32 * count, 0, 64
        for entry in (body[i:i + 32] for i in range(64, granules, 32)):
            kind, codec, zero, stored, start, count, crc, payload = struct.unpack("<BBHIQQII", entry)
            require(kind in (1, 2, 3) and codec in (0, 1) and zero == 0, name, "a frame of a kind that nobody knows")
            is_in_order = at <= start < start + count <= -(-layer.bytes >> volume.granule) and payload == head_at + 32
            require(is_in_order and (kind == 1 or (codec, stored, crc) == (0, 0, 0)), name, "a frame that has no place there")
            at, head_at = start + count, payload + stored
            digests = [body[granules + 16 * i:granules + 16 * i + 16] for i in range(count if kind == 1 else 0)]
            granules += 16 * len(digests)
            self.frames.append(Struct(kind=kind, codec=codec, stored=stored, start=start, count=count, crc=crc, payload=payload,
                                      head=entry[:28], digests=digests))
        require(granules == len(body) and head_at == offset, name, "its frames do not fill it")

    def bytes_at(self, offset, count):
        try:
            with open(self.path, "rb") as file:  # not kept open: there may be thousands
                file.seek(max(0, self.at + offset))
                data = file.read(count)
        except OSError as error:
            raise Damage(f"{self.name}: {error.strerror}") from None
        require(len(data) == count and offset >= 0, self.name, "it ends early")
        return data

    @functools.lru_cache(maxsize=256)
    def content(self, number):
        """What is in a data frame, checked by CRC and granule by granule."""
        frame, name = self.frames[number], f"{self.name}: frame {number}, granules from {self.frames[number].start} on"
        head, data = self.bytes_at(frame.payload - 32, 32), self.bytes_at(frame.payload, frame.stored)
        require(head[:28] == frame.head and crc32c(head[:28]) == int.from_bytes(head[28:], "little"), name, "its head is another")
        require(crc32c(data) == frame.crc, name, "its payload does not have its CRC")
        size = 1 << self.volume.granule
        length = min(self.bytes, (frame.start + frame.count) * size) - frame.start * size
        if frame.codec == 1:
            buffer = ctypes.create_string_buffer(length)
            require(ZSTD.ZSTD_decompress(buffer, length, data, len(data)) == length, name, "it does not decompress")
            data = buffer.raw
        require(len(data) == length, name, "it has another length")
        granules = [data[at:at + size] + struct.pack("<Q", frame.start + at // size) for at in range(0, length, size)]
        whole = length // size  # the last granule of a volume may be short
        digests = [digest for some in (granules[:whole], granules[whole:]) for digest in blake3_many(some, self.volume.key)]
        for i, digest in enumerate(digests):
            require(digest[:16] == frame.digests[i], self.name, f"granule {frame.start + i} does not have its digest")
        return data
