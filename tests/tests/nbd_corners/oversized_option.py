# A long option is read to its end and refused, an absurd one is not read; names that lie about their length are refused.
TOO_BIG, INVALID, UNSUPPORTED = 0x80000009, 0x80000003, 0x80000001
raw = Raw()
raw.option(7, struct.pack(">I", 60000) + b"x" * 60000 + b"\0\0")
assert raw.answer() == TOO_BIG
raw.option(7, struct.pack(">IH", 0xFFFFFFFF, 0))
assert raw.answer() == INVALID
raw.option(7, struct.pack(">IH", 0, 0xFFFF))
assert raw.answer() == INVALID
raw.option(7, b"")
assert raw.answer() == INVALID
raw.option(4711, b"y" * 1000)
assert raw.answer() == UNSUPPORTED
raw.go()  # after all that
raw.send(raw.request(0, 0, 4096))
assert raw.reply()[0] == 0 and len(raw.take(4096)) == 4096
raw = Raw()
raw.send(b"IHAVEOPT" + struct.pack(">II", 7, 0xFFFFFFFF))
raw.hung_up()
raw = Raw()
raw.send(b"NOTANOPT" + struct.pack(">II", 7, 0))
raw.hung_up()
# An old way to name an export has no way to be refused but this.
raw = Raw()
raw.option(1, b"nosuch")
raw.hung_up()
works(client())
