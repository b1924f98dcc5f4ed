# Clients that ask for as much as they may and take none of it: everybody else is served, as long as they like.
deaf = []
for i in range(CLIENTS - 2):
    raw = Raw().go()
    raw.send(b"".join(raw.request(0, 0, 16 * MIB, cookie=j) for j in range(4)))
    deaf.append(raw)
other = Raw().go()
content = os.urandom(MIB)
for i in range(50):
    other.send(other.request(1, 0, MIB, cookie=i) + content)
    assert other.reply() == (0, i)
    other.send(other.request(0, 0, MIB, cookie=i))
    assert other.reply() == (0, i) and other.take(MIB) == content
for raw in deaf:
    raw.socket.close()
other.send(other.request(0, 0, 16 * MIB))
assert other.reply()[0] == 0 and other.take(16 * MIB)[:MIB] == content
