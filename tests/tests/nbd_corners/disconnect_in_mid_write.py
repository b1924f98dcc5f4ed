# Half of a write's data, then nothing more: each block holds what it held or what was sent, and the others never notice.
h = client()
other = client()
for sent in [0, 1, 4095, 4096, 300000, MIB - 1]:
    h.pwrite(b"\x11" * MIB, 0)
    raw = Raw().go()
    raw.send(raw.request(1, 0, MIB) + b"\x22" * sent)
    works(other, MIB)
    raw.socket.close()
    works(other, MIB)
    found = bytes(h.pread(MIB, 0))
    for at in range(0, MIB, 512):
        block = found[at : at + 512]
        assert block == b"\x11" * 512 or (block == b"\x22" * 512 and at + 512 <= sent), (sent, at)
# A farewell in the middle of answers that nobody reads.
raw = Raw().go()
raw.send(b"".join(raw.request(0, 0, MIB, cookie=i) for i in range(64)) + raw.request(2, 0, 0))
raw.socket.close()
# And a client that never reads its answers keeps nobody from theirs.
deaf = Raw().go()
deaf.send(b"".join(deaf.request(0, 0, MIB, cookie=i) for i in range(64)))
works(h)
deaf.socket.close()
works(h)
