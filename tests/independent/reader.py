#!/usr/bin/env python3
"""Reads a Farside store that is a directory, and restores any point of it, without Farside.

    reader.py STORE                                    what is in it
    reader.py STORE SOURCE/GROUP/VOLUME SLOT IMAGE     the volume as it was at the point of that slot; `-` is standard output

Written from docs/formats/{store,ledger,layer}.md alone, so that they stay enough to write another one. It needs Python 3.10 and
libzstd, which every Debian has. The ledger is replayed from its first record with all verdicts, and every digest on the way is
checked. Of checkpoints it takes nothing, but they must agree; a ledger of which the first records are gone, after some 500,000, would have to be
begun at one, and is refused. Encrypted parts are refused: Python comes without AES-GCM.
"""

import fcntl
import os
import struct
import sys
from bisect import bisect_right

sys.dont_write_bytecode = True

from blake3 import blake3
from layer import Part
from ledger import SLOTS, Ledger
from objects import NAME, NUMBER, Damage, described_as, identity, require


class Uncovered:
    """Granules that no newer run holds: disjoint [first, end), ascending."""

    def __init__(self, count):
        self.ranges = [[0, count]] if count else []

    def take(self, first, end):
        """Takes away what of first … end is there, and gives it."""
        at = max(0, bisect_right(self.ranges, [first, first]) - 1)
        stop, taken, left = at, [], []
        while stop < len(self.ranges) and self.ranges[stop][0] < end:
            a, b = self.ranges[stop]
            if max(a, first) < min(b, end):
                taken.append((max(a, first), min(b, end)))
            left += [piece for piece in ([a, min(b, first)], [max(a, end), b]) if piece[0] < piece[1]]
            stop += 1
        self.ranges[at:stop] = left
        return taken


def plan(ledger, volume, slot):
    """Which frame each granule that is not zero comes from at a point: (first, end, part, frame number), ascending."""
    uncovered, pieces = Uncovered(-(-ledger.points[slot].members[volume.id] >> volume.granule)), []
    layers = sorted(volume.layers + list(volume.merges.values()), key=lambda layer: layer.slot)
    for layer in reversed([layer for layer in layers if layer.slot <= slot]):
        names = b"farside layer v1\0" + volume.id + struct.pack("<QQQ", layer.term, layer.seq, len(layer.parts))
        name = f"{ledger.folder}/ledger/{layer.slot // SLOTS}/{layer.slot}"
        digest = blake3(names + b"".join(footer for _, footer in layer.parts))
        require(layer.digest in (digest, None), name, "its layer does not have its digest")
        for number in reversed(range(len(layer.parts))):
            if number in layer.given_up:
                continue
            pack, at = ledger.places.get(((volume.id, layer.term, layer.seq), number), (None, None))
            own = f"{ledger.folder}/segments/{volume.name}/{layer.term}/{layer.seq}.{number}"
            name = own if pack is None else f"{ledger.folder}/packs/{pack.hex()}"
            try:
                part = Part(ledger.store, name, at, volume, layer, number)
            except Damage:
                per_region = 1 << volume.region - volume.granule
                if any(uncovered.take(first * per_region, end * per_region) for first, end in layer.regions):
                    raise
                continue  # newer parts hold all that it can have held
            for i, frame in enumerate(part.frames):
                taken = uncovered.take(frame.start, frame.start + frame.count)
                pieces += [(first, end, part, i) for first, end in taken if frame.kind != 2]
    return sorted(pieces, key=lambda piece: piece[0])


def restore(ledger, volume, slot, path):
    """Writes the image, and says which granules were unreadable on the host; True if there were none."""
    size, granule, at, is_whole = ledger.points[slot].members[volume.id], 1 << volume.granule, 0, True
    pieces = plan(ledger, volume, slot)
    with sys.stdout.buffer if path == "-" else open(f"{path}.partial", "wb") as out:
        for first, end, part, number in pieces:
            if part.frames[number].kind == 3:
                print(f"granules {first} to {end - 1} could not be read on the host; zeroes here", file=sys.stderr)
                is_whole = False
                continue
            start = part.frames[number].start
            data = part.content(number)[(first - start) * granule:(end - start) * granule]
            skip(out, path, first * granule - at)
            out.write(data)
            at = first * granule + len(data)
        skip(out, path, size - at)
        if path != "-":
            out.truncate(size)
    if path != "-":
        os.rename(f"{path}.partial", path)
    return is_whole


def skip(out, path, count):
    """Leaves a hole in a file, writes zeroes elsewhere."""
    if path != "-":
        out.seek(count, os.SEEK_CUR)
        return
    for at in range(0, count, 1 << 20):
        out.write(bytes(min(1 << 20, count - at)))


def ledgers(store):
    groups = os.path.join(store, "groups")
    for source in sorted(filter(NAME.fullmatch, os.listdir(groups))) if os.path.isdir(groups) else []:
        for group in sorted(filter(NAME.fullmatch, os.listdir(os.path.join(groups, source)))):
            yield source, group


def show(ledger):
    print(f"group {ledger.name}")
    for volume in ledger.volumes.values():
        print(f"volume {ledger.name}/{volume.name}: {volume.bytes} bytes, {len(volume.layers)} layers, term {volume.term}")
    for slot, point in ledger.points.items():
        names = ", ".join(f"{ledger.volumes[volume_id].name} ({size} bytes)" for volume_id, size in point.members.items())
        pins = "".join(f", pinned: {reason}" for reason in point.pins.values())
        label = f", {['crash', 'application', 'cohort'][point.label.consistency]}-consistent: {point.label.title} ({point.label.hooks})" if point.label else ""
        print(f"point {slot} of {ledger.name}: {names}, {point.wall} ms since 1970{label}{', degraded' * point.degraded}{pins}")
    kinds = [kind for kind, verdict in ledger.verdicts if verdict == "accepted"]
    print(f"records of {ledger.name}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))))
    for slot, (kind, verdict) in enumerate(ledger.verdicts):
        if verdict != "accepted":
            print(f"record {slot} of {ledger.name}: {kind}, {verdict}")


def main(store, of=None, slot=None, path=None):
    described_as(store, "farside-store.json", "farside store")
    if os.path.exists(lock := os.path.join(store, "reader.lock")):
        fcntl.flock(os.open(lock, os.O_RDONLY), fcntl.LOCK_SH)  # nothing is deleted while we read
    if of is None:
        torn = [show(ledger) or ledger.torn for ledger in (Ledger(store, *names) for names in ledgers(store))]
        for error in filter(None, torn):
            print(error, file=sys.stderr)
        return 1 if any(torn) else 0
    require(len(names := of.split("/")) == 3 and NUMBER.fullmatch(slot), f"{of} {slot}", "not SOURCE/GROUP/VOLUME SLOT")
    require(path == "-" or not os.path.exists(path), path, "it is there already")
    source, group, name = names
    ledger = Ledger(store, source, group)
    volume = ledger.volumes.get(identity("volume", source, group, name))
    if volume is None or int(slot) not in ledger.points or volume.id not in ledger.points[int(slot)].members:
        raise ledger.torn or Damage(f"{of}: there is no point {slot} of it")
    if ledger.torn:
        print(f"{ledger.torn}; the point is older", file=sys.stderr)
    return 0 if restore(ledger, volume, int(slot), path) else 3


if __name__ == "__main__":
    if len(sys.argv) not in (2, 5):
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except Damage as error:
        sys.exit(f"reader.py: {error}")
