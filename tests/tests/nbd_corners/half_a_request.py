# Clients that stop in the middle of anything keep nobody waiting, whether they stay or go.
halves = []
for stop in range(0, 28, 9):
    raw = Raw().go()
    raw.send(raw.request(0, 0, 4096)[:stop])
    halves.append(raw)
raw = Raw()
raw.send(b"IHAVEOPT\0\0")
halves.append(raw)
raw = socket.socket(socket.AF_UNIX)
raw.connect(SOCKET)
h = client()
works(h)
for half in halves[::2]:
    half.socket.close()
works(h)
# The second half makes it whole, byte by byte.
raw = Raw().go()
for byte in raw.request(0, 0, 4096):
    raw.send(bytes([byte]))
assert raw.reply()[0] == 0 and len(raw.take(4096)) == 4096
works(h)
