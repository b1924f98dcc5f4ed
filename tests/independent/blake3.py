"""BLAKE3 and CRC-32C in nothing but Python, after the specifications (BLAKE3: section 2 of its paper; CRC-32C: RFC 3720, B.4).

Messages of one length are digested side by side: a word of the algorithm is a long integer that holds that word of every chunk,
64 bits apart, so that one operation of Python does a round's step for all of them. Ten to fifteen MB/s instead of one.
"""

import sys
from array import array

assert sys.byteorder == "little", "words are taken as they lie in memory"

IV = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
COLUMNS_AND_DIAGONALS = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
CHUNK_START, CHUNK_END, PARENT, ROOT, KEYED = 1, 2, 4, 8, 16
CHUNK, BLOCK = 1024, 64
SIDE_BY_SIDE = 1024


def words(data):
    """Its 32-bit words."""
    return array("I", data)


def lanes(values):
    """Numbers below 2^32 as one integer, 64 bits apart."""
    return int.from_bytes(array("Q", values), "little")


def compress(state, block, counter, length, flags, ones):
    """The compression function on every lane; `ones` has a 1 in each."""
    mask = ones * 0xFFFFFFFF
    v = state + [word * ones for word in IV[:4]] + [counter, 0, length * ones, flags * ones]  # counters stay below 2^32
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(COLUMNS_AND_DIAGONALS):
            for message, first, second in ((block[2 * i], 16, 12), (block[2 * i + 1], 8, 7)):
                v[a] = v[a] + v[b] + message & mask
                x = v[d] ^ v[a]
                v[d] = (x >> first | x << 32 - first) & mask
                v[c] = v[c] + v[d] & mask
                x = v[b] ^ v[c]
                v[b] = (x >> second | x << 32 - second) & mask
        block = [block[i] for i in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def chain(inputs, counters, key, flags, is_parent):
    """The 32-byte chaining values of inputs of one length, each a chunk or the two values below a parent."""
    count, length = len(inputs), len(inputs[0])
    blocks = max(1, -(-length // BLOCK))
    text = words(b"".join(data.ljust(blocks * BLOCK, b"\0") for data in inputs))
    ones = lanes([1] * count)
    counter = lanes(counters)
    state = [word * ones for word in key]
    for i in range(blocks):
        block = [lanes(text[16 * i + k::16 * blocks]) for k in range(16)]
        start = 0 if is_parent or i > 0 else CHUNK_START
        last = i == blocks - 1
        end = (flags | (0 if is_parent else CHUNK_END)) if last else flags & ~ROOT
        size = length - BLOCK * i if last else BLOCK
        state = compress(state, block, counter, size, start | end | (PARENT if is_parent else 0), ones)
    rows = [word.to_bytes(8 * count, "little") for word in state]
    return [b"".join(row[8 * i:8 * i + 4] for row in rows) for i in range(count)]


def blake3_many(messages, key=None):
    """The 32-byte digests of messages of one length, keyed with 32 bytes if there is a key."""
    if not messages:
        return []
    if len(messages) > SIDE_BY_SIDE:
        return blake3_many(messages[:SIDE_BY_SIDE], key) + blake3_many(messages[SIDE_BY_SIDE:], key)
    length, flags, key = len(messages[0]), KEYED if key else 0, list(words(key)) if key else IV
    full = max(0, (length - 1) // CHUNK)
    begin = [(message, n) for message in messages for n in range(full)]
    values = []
    for at in range(0, len(begin), SIDE_BY_SIDE):
        some = begin[at:at + SIDE_BY_SIDE]
        values += chain([m[n * CHUNK:(n + 1) * CHUNK] for m, n in some], [n for _, n in some], key, flags, False)
    tails = chain([m[full * CHUNK:] for m in messages], [full] * len(messages), key, flags | (0 if full else ROOT), False)
    rows = [values[i * full:(i + 1) * full] + [tail] for i, tail in enumerate(tails)]
    while len(rows[0]) > 1:
        pairs, root = len(rows[0]) // 2, ROOT if len(rows[0]) == 2 else 0
        parents = chain([row[2 * n] + row[2 * n + 1] for row in rows for n in range(pairs)],
                        [0] * (pairs * len(rows)), key, flags | root, True)
        rows = [parents[i * pairs:(i + 1) * pairs] + row[2 * pairs:] for i, row in enumerate(rows)]
    return [row[0] for row in rows]


def blake3(message):
    """The digest of one message."""
    return blake3_many([message])[0]


def crc_of_byte(byte):
    """An entry of the table of CRC-32C."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


def crc32c(data):
    """CRC-32C (Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
