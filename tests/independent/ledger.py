"""The ledger of a group: its records, read after docs/formats/ledger.md and replayed with all their verdicts."""

import os
import re
import struct
from bisect import bisect_left, bisect_right
from types import SimpleNamespace as Struct

from blake3 import blake3
from objects import NAME, NUMBER, Damage, described_as, identity, numbers, read, require

SLOTS = 4096
RUN = 64
HOURS_2 = 2 * 3600 * 1000
MERGE = 1 << 63
STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
KINDS = {1: "claim", 2: "layers", 3: "heartbeat", 4: "pin", 5: "unpin", 6: "prune", 7: "void", 8: "tracking_lost", 9: "prune",
         10: "pack_places", 11: "verified", 12: "claim", 13: "map", 14: "decree", 15: "layers", 16: "claim", 17: "layers"}


class Postcard:
    """What is encoded in a body, taken from its beginning."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def raw(self, count):
        require(self.at + count <= len(self.data), "the body", "ends early")
        self.at += count
        return self.data[self.at - count:self.at]

    def u(self):
        result = shift = 0
        while (byte := self.raw(1)[0]) & 0x80:
            result, shift = result | (byte & 0x7F) << shift, shift + 7
        return result | byte << shift

    def i(self):
        value = self.u()
        return value >> 1 ^ -(value & 1)

    def text(self):
        return self.raw(self.u()).decode()

    def name(self):
        name = self.text()
        require(NAME.fullmatch(name), "the body", "has a name that is none")
        return name

    def many(self, element):
        return [element() for _ in range(self.u())]

    def option(self, value):
        return value() if self.raw(1) == b"\1" else None

    def ranges(self):
        """A RegionSet, as (first, end)."""
        result, end = [], 0
        for gap, length in self.many(lambda: (self.u(), self.u())):
            require(length > 0 and (gap > 0 or not result), "the body", "has a set of regions that none writes")
            result.append((end + gap, end := end + gap + length))
        return result

    def layer_key(self):
        return self.raw(16), self.u(), self.u()

    def digest_key(self):
        """The digest key; of an encrypted volume zeroes, mode, key id and commitment."""
        key = self.raw(32)
        if key != bytes(32):
            return key
        key += self.raw(49)
        require(key[32] in (1, 2), "the body", "has a mode of encryption that nobody knows")
        return key

    def parts(self):
        return self.many(lambda: (self.layer_key(), self.many(self.u)))

    def label(self):
        consistency = self.u()
        require(consistency < 3, "the body", "has a label that is none")
        cohort = Struct(cohort=self.raw(16), cut=self.raw(16), groups=self.u(), wall=self.i()) if consistency == 2 else None
        return Struct(consistency=consistency, cohort=cohort, title=self.text(), hooks=self.text())

    def body(self, number):
        kind = KINDS[number]
        if kind == "claim":
            claim = Struct(volume=self.raw(16), name=self.name(), bytes=self.u(), granule=self.raw(1)[0], region=self.raw(1)[0],
                           key=self.digest_key(), generation=self.u(), looked=self.option(self.u), source=self.name())
            is_shape = 0 < claim.bytes <= 1 << 52 and 0 <= claim.region - claim.granule <= 10
            require(is_shape, "the body", "has a volume of no shape")
            mode = claim.key[32] if len(claim.key) > 32 else 0
            require({1: 0, 12: 1, 16: 2}[number] == mode, "the body", "is of a claim of another kind")
            return claim
        if kind == "layers":
            layers = Struct(
                is_point=self.u() == 0, boot=self.raw(16), before=self.u(), after=self.u(), wall=self.i(),
                members=self.many(lambda: Struct(
                    key=self.layer_key(), digest=self.raw(32), parts=self.many(lambda: (self.u(), self.raw(32))),
                    regions=self.ranges(), unreadable=self.ranges(), bytes=self.u())))
            layers.label = self.label() if number in (15, 17) else None
            require(layers.label is None or (layers.label.cohort is not None) == (number == 17), "the body", "has a label of the other kind")
            return layers
        if kind == "heartbeat":
            return Struct(members=self.many(lambda: (self.raw(16), self.u())), position=self.u(), digest=self.raw(32),
                          cut=(self.raw(16), self.u(), self.i()))
        if kind == "pin":
            return Struct(point=self.u(), reason=self.text())
        if kind == "unpin":
            return Struct(pin=self.u())
        if kind == "tracking_lost":
            return Struct(volume=self.raw(16), term=self.u())
        if kind == "verified":
            verified = Struct(point=self.u(), how=self.u())
            require(verified.how < 2, "the body", "has a way to verify that is none")
            return verified
        if kind == "map":
            return Struct(volume=self.raw(16), id=self.u(), point=self.u(), parts=self.parts(),
                          new=self.many(lambda: (self.u(), self.raw(32))), regions=self.ranges())
        if kind == "decree":
            return Struct(merges=self.many(lambda: (self.raw(16), self.u())))
        if kind == "pack_places":
            return Struct(packs=self.many(lambda: (self.raw(16), self.many(lambda: (self.layer_key(), self.u(), self.u())))))
        if kind == "void":
            return Struct(digest=self.raw(32), bytes=self.u())
        prune = Struct(looked=self.u(), keep=self.u(), span=self.u(), has_rules=number == 9,
                       rules=self.many(lambda: (self.u(), self.u())) if number == 9 else [],
                       points=self.many(self.u), parts=self.parts())
        every = [0] + [rule[0] for rule in prune.rules]
        require(len(every) <= 33 and is_ascending(every), "the body", "has rules that are none")
        return prune


def is_ascending(values):
    return all(a < b for a, b in zip(values, values[1:]))


def records_of(data, name, slot):
    """The own records of an object, as they would be alone. What it repeats is not looked at: the other objects have it."""
    if data[:8] != b"FSLBATCH":
        return [data]
    require(52 <= len(data) <= 4 << 20, name, "torn: a batch of that length")
    version, count, flags = struct.unpack_from("<HHI", data, 8)
    repeated, = struct.unpack_from("<I", data, 16) if version == 2 else (0,)
    lengths_at = 20 if version == 2 else 16
    at = lengths_at + 4 * (count + repeated)
    if version == 2:
        require(at <= len(data), name, "torn: a batch of another length")
        end = at + sum(struct.unpack_from(f"<{count}I", data, lengths_at))
        require(blake3(data[:end]) == data[end:end + 32], name, "torn: a batch without its digest")
    else:
        end = len(data) - 32
        require(blake3(data[:end]) == data[end:], name, "torn: a batch without its digest")
    require(version in (1, 2) and flags == 0, name, f"a batch of version {version} and flags {flags}: newer than this reader")
    is_batch = (2 if version == 1 else 1) <= count <= RUN - slot % RUN and (version == 1 or 1 <= repeated <= 4095)
    require(is_batch and at <= end, name, "torn: a batch of too few or too many records")
    lengths = struct.unpack_from(f"<{count}I", data, lengths_at)
    require(at + sum(lengths) == end, name, "torn: a batch of another length")
    return [data[(at := at + length) - length:at] for length in lengths]


def record(data, name, group, slot, prev):
    """A record that is whole and has this place."""
    require(160 <= len(data) <= 4 << 20 and data[:8] == b"FSLEDGER", name, "torn: not a record")
    version, kind, length, its_slot = struct.unpack_from("<HHIQ", data, 8)
    mono, wall, flags = struct.unpack_from("<QqQ", data, 104)
    require(blake3(data[:-32]) == data[-32:], name, "torn: it does not have its digest")
    is_known = version == 1 and kind in KINDS and flags == 0
    require(is_known, name, f"of version {version}, kind {kind} and flags {flags}: newer than this reader")
    require(len(data) == 160 + length, name, "torn: its body has another length")
    require(its_slot == slot and data[24:40] == group, name, "of another slot or another group")
    require(data[40:72] == prev, name, "torn: it does not name the record before it")
    body = Postcard(data[128:-32])
    try:
        fields = body.body(kind)
        require(body.at == len(body.data), "the body", "goes on")
    except (Damage, UnicodeDecodeError) as error:
        raise Damage(f"{name}: torn: {error}") from None
    return Struct(kind=KINDS[kind], slot=slot, writer=data[88:104], mono=mono, wall=wall, body=fields, digest=data[-32:])


class Ledger:
    """A group's records, replayed from slot 0."""

    def __init__(self, store, source, group):
        self.store, self.name, self.folder = store, f"{source}/{group}", f"groups/{source}/{group}"
        self.source, self.group, self.id = source, group, identity("group", source, group)
        described = described_as(store, f"{self.folder}/group.json", "farside group")
        require(described["id"] == self.id.hex(), f"{self.folder}/group.json", "of a group of another name")
        self.volumes, self.points, self.digests, self.verdicts, self.clocks = {}, {}, [], [], {}
        self.said, self.places = {}, {}
        self.time = self.age = 0
        self.stamp = self.roots_changed = self.torn = None
        folder = os.path.join(store, self.folder, "ledger")
        names = {(n, name) for n in numbers(folder) for name in os.listdir(os.path.join(folder, str(n)))}
        slots = [int(name.removesuffix(".void")) for _, name in names if NUMBER.fullmatch(name.removesuffix(".void"))]
        try:
            while (slot := len(self.digests)) <= max(slots, default=-1):
                self.replay(slot, (slot // SLOTS, f"{slot}.void") in names)
        except Damage as error:
            self.torn = error  # what is before it stays readable
        self.hold_against_checkpoints()

    def replay(self, slot, has_void):
        name = f"{self.folder}/ledger/{slot // SLOTS}/{slot}"
        is_there = os.path.exists(os.path.join(self.store, name))
        digests = os.path.join(self.store, self.folder, "checkpoint", f"{slot // SLOTS}.digests")
        require(is_there or has_void or not os.path.exists(digests), name, "gone: replay begins at a checkpoint, but not in this reader")
        data = read(self.store, name) if is_there or not has_void else b""
        if has_void:
            its = record(read(self.store, f"{name}.void"), f"{name}.void", self.id, slot, self.prev())
            is_of_it = its.kind == "void" and (its.body.digest, its.body.bytes) == (blake3(data), len(data))
            require(is_of_it, f"{name}.void", "torn: it does not stand for the bytes beside it")
            return self.take(its)
        prev, records = self.prev(), []
        for i, one in enumerate(records_of(data, name, slot)):  # all of them, or none
            records.append(record(one, name, self.id, slot + i, prev))
            prev = records[-1].digest
        for its in records:
            self.take(its)

    def prev(self):
        return self.digests[-1] if self.digests else bytes(32)

    def take(self, its):
        self.digests.append(its.digest)
        if its.slot % RUN == 0:
            self.said = {}
        self.verdicts.append((its.kind, getattr(self, its.kind)(its, its.body) or "accepted"))
        if its.slot % SLOTS == SLOTS - 1:
            self.clocks[its.slot] = (self.time, self.age)

    def void(self, its, body):
        return "void: in place of a torn record"

    def claim(self, its, body):
        old = self.volumes.get(body.volume)
        if body.looked is not None and body.looked >= its.slot:
            return "void: looked at what was not there"
        if old is None:
            old = Struct(id=body.volume, name=body.name, layers=[], by_key={}, unreadable=set(), good=[], degraded=[], lost=None,
                         merges={}, decreed=set())
        else:
            if old.layers and (body.looked is None or old.layers[-1].slot > body.looked):
                return "void: a layer was published meanwhile"
            if body.generation < old.generation or body.bytes < old.bytes or body.key != old.key:
                return "void: another generation, size or key"
            if (body.granule, body.region) != (old.granule, old.region):
                return "void: another geometry"
        old.term, old.seq, old.generation = its.slot, 0, body.generation
        old.bytes, old.granule, old.region, old.key = body.bytes, body.granule, body.region, body.key
        self.volumes[body.volume] = old

    def layers(self, its, body):
        ids = [member.key[0] for member in body.members]
        if not ids or len(set(ids)) < len(ids) or body.after < body.before:
            return "void: nothing, something twice, or a switch that ends before it begins"
        texts = [body.label.title, body.label.hooks] if body.label else []
        if body.label and not body.is_point or any(len(text.encode()) > 256 or STEERS.search(text) for text in texts):
            return "void: a label that is too long, steers a terminal, or is of what is no point"
        fresh = []
        for member in body.members:
            volume_id, term, seq = member.key
            volume = self.volumes.get(volume_id)
            if volume is None or term != volume.term or seq == 0:
                return "void: no such volume, or of another term"
            count = -(-member.bytes >> volume.region)
            inside = all(any(a <= first and end <= b for a, b in member.regions) for first, end in member.unreadable)
            if any(end > count for _, end in member.regions) or not inside:
                return "void: regions beyond the volume, or unreadable ones that it does not touch"
            if (before := volume.by_key.get((term, seq))) is not None:
                if before.digest != member.digest:
                    return "void: another layer was accepted by that name"
            elif seq != volume.seq + 1 or member.bytes < volume.bytes:
                return "void: not the next one, or of a smaller volume"
            else:
                fresh.append((volume, member))
        if not fresh or body.is_point and len(fresh) < len(body.members):
            return "void: duplicate"
        self.advance(its)
        for volume, member in fresh:
            _, term, seq = member.key
            layer = Struct(record=its.slot, slot=its.slot, term=term, seq=seq, digest=member.digest, parts=member.parts,
                           regions=member.regions, bytes=member.bytes, given_up=set())
            for number in range(len(layer.parts)):
                if (place := self.said.get((member.key, number))) is not None:
                    self.places[member.key, number] = place
            volume.layers.append(layer)
            volume.by_key[term, seq] = layer
            volume.seq, volume.bytes = seq, member.bytes
            volume.unreadable = {r for r in volume.unreadable if not any(a <= r < b for a, b in member.regions)}
            volume.unreadable.update(r for a, b in member.unreadable for r in range(a, b))
        if body.is_point:
            degraded = any(volume.unreadable for volume, _ in fresh)
            self.points[its.slot] = Struct(
                slot=its.slot, time=self.time, age=self.age, wall=body.wall, label=body.label, pins={}, degraded=degraded,
                members={volume.id: member.bytes for volume, member in fresh})
            for volume, _ in fresh:
                (volume.degraded if degraded else volume.good).append(its.slot)

    def heartbeat(self, its, body):
        if not body.members or len({volume for volume, _ in body.members}) < len(body.members):
            return "void: nothing, or something twice"
        if body.position >= its.slot or self.digests[body.position] != body.digest:
            return "void: of another history"
        for volume_id, term in body.members:
            volume = self.volumes.get(volume_id)
            if volume is None or volume.term != term or volume.layers and volume.layers[-1].slot > body.position:
                return "void: of another term, or a layer is newer"
        self.advance(its)

    def advance(self, its):
        """Ledger time and the age clock."""
        writer, mono, wall = self.stamp or (its.writer, its.mono, its.wall)
        if writer == its.writer:
            passed = max(0, its.mono - mono)
            self.time, self.age = self.time + passed, self.age + min(passed, HOURS_2)
            self.stamp = (writer, mono + passed, its.wall)
        else:
            self.time, self.stamp = self.time + min(max(0, its.wall - wall), HOURS_2), (its.writer, its.mono, its.wall)

    def pin(self, its, body):
        if body.point not in self.points or len(body.reason.encode()) > 1024:
            return "void: no such point"
        self.points[body.point].pins[its.slot] = body.reason
        self.roots_changed = its.slot

    def unpin(self, its, body):
        point = next((point for point in self.points.values() if body.pin in point.pins), None)
        if point is None:
            return "void: no such pin"
        del point.pins[body.pin]
        self.roots_changed = its.slot

    def verified(self, its, body):
        if body.point not in self.points:
            return "void: no such point"

    def pack_places(self, its, body):
        parts = [(key, number) for _, parts in body.packs for key, number, _ in parts]
        packs = [pack for pack, _ in body.packs]
        if not packs or not all(parts for _, parts in body.packs):
            return "void: nothing"
        if len(set(packs)) < len(packs) or len(set(parts)) < len(parts):
            return "void: something twice"
        if not all(0 <= its.slot - int.from_bytes(pack[:8], "big") < RUN for pack in packs):
            return "void: a pack of another slot"
        self.said = {(key, number): (pack, offset) for pack, parts in body.packs for key, number, offset in parts}

    def tracking_lost(self, its, body):
        volume = self.volumes.get(body.volume)
        if volume is None or volume.term != body.term:
            return "void: no such volume, or of another term"
        if volume.lost is not None and volume.lost > max([volume.term] + [layer.slot for layer in volume.layers[-1:]]):
            return "void: duplicate"
        volume.lost = its.slot

    def prune(self, its, body):
        if body.looked >= its.slot or self.roots_changed is not None and self.roots_changed > body.looked:
            return "void: pins or points changed meanwhile"
        named = [(key, part) for key, parts in body.parts for part in parts]
        layers = {key for key, _ in body.parts}
        if not (layers or body.points) or len(layers) < len(body.parts) or len(set(body.points)) < len(body.points):
            return "void: nothing, or something twice"
        if not all(is_ascending(parts) for _, parts in body.parts):
            return "void: parts that do not ascend"
        if not all(slot in self.points and self.is_prunable(self.points[slot], body) for slot in body.points):
            return "void: a point is not there or not prunable"
        for key, part in named:
            layer = self.published(key)
            if not layer or part >= len(layer.parts) or part in layer.given_up or layer.record > body.looked:
                return "void: a part is not there"
            point = layer.slot if layer.digest else layer.point
            if layer is self.volumes[key[0]].layers[-1] or point in self.points and point not in body.points:
                return "void: a part is of the newest layer or of a retained point"
        for slot in body.points:
            for volume_id in self.points.pop(slot).members:
                for held in (self.volumes[volume_id].good, self.volumes[volume_id].degraded):
                    held[:] = [other for other in held if other != slot]
        for key, part in named:
            self.published(key).given_up.add(part)
        self.roots_changed = its.slot

    def published(self, key):
        """A layer, or a merge, whose parts take the place of others."""
        volume_id, term, seq = key
        volume = self.volumes.get(volume_id)
        if volume is None or term < MERGE:
            return volume and volume.by_key.get((term, seq))
        return volume.merges.get(term - MERGE) if seq == 1 else None

    def map(self, its, body):
        named = [(key, part) for key, parts in body.parts for part in parts]
        volume = self.volumes.get(body.volume)
        if volume is None or not named or not all(parts and is_ascending(parts) for _, parts in body.parts):
            return "void: no such volume, or nothing"
        if len({key for key, _ in body.parts}) < len(body.parts) or any(key[0] != body.volume for key, _ in body.parts):
            return "void: something twice, or of another volume"
        if body.id >= MERGE or len(body.new) > len(named) or any(end > -(-volume.bytes >> volume.region) for _, end in body.regions):
            return "void: a merge that cannot be"
        if body.id in volume.merges or body.id in volume.decreed:
            return "void: its id was used or decreed before"
        points = sorted(volume.good + volume.degraded)
        if body.point not in points:
            return "void: no such point"
        if any(self.points[point].pins for point in points if point >= body.point):
            return "void: a pinned point may need its parts"
        after = max((point for point in points if point < body.point), default=-1)
        old = {key: self.published(key) for key, _ in body.parts}
        for key, part in named:
            if not old[key] or part >= len(old[key].parts) or part in old[key].given_up:
                return "void: a part is not there"
            if not after < old[key].slot <= body.point or old[key] is volume.layers[-1]:
                return "void: a part is not of the interval, or of the newest layer"
        first, last = min(layer.slot for layer in old.values()), max(layer.slot for layer in old.values())
        for layer in volume.layers + list(volume.merges.values()):
            if first < layer.slot < last:
                key = (body.volume, layer.term, layer.seq)
                if any((key, part) not in named for part in range(len(layer.parts)) if part not in layer.given_up):
                    return "void: it leaves out what lies between"
        for key, part in named:
            old[key].given_up.add(part)
        volume.merges[body.id] = Struct(
            record=its.slot, slot=last, point=body.point, term=MERGE + body.id, seq=1, digest=None, parts=body.new,
            regions=body.regions, bytes=self.points[body.point].members[volume.id], given_up=set())

    def decree(self, its, body):
        if not body.merges or len(set(body.merges)) < len(body.merges):
            return "void: nothing, or something twice"
        for volume_id, merge in body.merges:
            volume = self.volumes.get(volume_id)
            if volume is None or merge >= MERGE or merge in volume.merges:
                return "void: no such volume, or the merge was accepted"
        for volume_id, merge in body.merges:
            self.volumes[volume_id].decreed.add(merge)

    def is_prunable(self, point, policy):
        def time(slot):
            return self.points[slot].time

        def age(slot):
            return self.points[slot].age if policy.has_rules else self.points[slot].time

        old = (self.age if policy.has_rules else self.time) - policy.span
        if point.pins or age(point.slot) > old:
            return False
        keep = max(1, policy.keep)
        for volume in (self.volumes[volume_id] for volume_id in point.members):
            newer = len(volume.good) - bisect_right(volume.good, point.slot)
            worse = bisect_right(volume.degraded, old, key=age) - bisect_right(volume.degraded, point.slot)
            if newer < keep and not (point.degraded and worse >= keep):
                return False
            for every, keeps in policy.rules:
                cell = point.time // every
                firsts = [held[bisect_left(held, cell * every, key=time):][:1] for held in (volume.good, volume.degraded)]
                first = next((f[0] for f in firsts if f and time(f[0]) // every == cell), None)
                if first == point.slot and self.age < point.age + (cell + 1) * every - point.time + keeps:
                    return False
        return True

    def hold_against_checkpoints(self):
        """Checkpoints cover records that are there, and say the same of them."""
        previous = {}
        for number in numbers(os.path.join(self.store, self.folder, "checkpoint")):
            name, end = f"{self.folder}/checkpoint/{number}", (number + 1) * SLOTS
            root = read(self.store, name)
            require(len(root) == 184 and root[:8] == b"FSCHKPNT" and root[152:] == blake3(root[:152]), name, "not whole")
            fields = struct.unpack("<II16sQQ32s32sQ32s", root[8:152])
            require(fields[0] in (1, 2) and fields[1:5] == (0, self.id, number, SLOTS), name, "of another version, group or place")
            if self.torn is None:
                require(end <= len(self.digests), name, "it covers records that are not there")
            require(end > len(self.digests) or fields[5] == self.digests[end - 1], name, "of other records")
            require(fields[6] == previous.get(number - 1, fields[6] if number else bytes(32)), name, "not after the one before")
            previous[number] = root[152:]
            if os.path.exists(os.path.join(self.store, f"{name}.digests")):
                data, count = read(self.store, f"{name}.digests"), fields[4]
                require(len(data) == 80 + 32 * count and data[-32:] == blake3(data[:-32]), f"{name}.digests", "not whole")
                head = struct.unpack("<8sII16sQQ", data[:48])
                require(head == (b"FSSLOTDG", 1, 0, self.id, number, SLOTS), f"{name}.digests", "of another version, group or place")
                listed = [data[48 + 32 * nth : 80 + 32 * nth] for nth in range(count)]
                require(end > len(self.digests) or listed == self.digests[end - count : end], f"{name}.digests", "of other records")
            if fields[0] == 2 and os.path.exists(os.path.join(self.store, f"{name}.state")) and end <= len(self.digests):
                data = read(self.store, f"{name}.state")
                require((len(data), blake3(data)) == fields[7:9] and data[:8] == b"FSCHKST7", f"{name}.state", "not whole")
                state = Postcard(data[8:])
                group, digests, first = state.raw(16), state.many(lambda: state.raw(32)), state.u()
                old, clocks = state.many(lambda: (state.u(), state.raw(32))), (state.u(), state.u())
                same = (group, digests, clocks) == (self.id, self.digests[first:end], self.clocks[end - 1])
                same = same and first + len(digests) == end and all(self.digests[slot] == digest for slot, digest in old)
                require(same, f"{name}.state", "of other records")
