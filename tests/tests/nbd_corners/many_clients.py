# As many as are allowed at once, each seeing what the others wrote; one more waits or is refused, and gets the place of one
# that left.
clients = [client() for _ in range(CLIENTS)]
for i, h in enumerate(clients):
    assert h.can_multi_conn()
    h.pwrite(bytes([i + 1]) * 4096, i * 4096)
clients[0].flush()  # of everything that was answered, whoever wrote it
for i in range(len(clients)):
    reader = clients[(i * 7 + 3) % len(clients)]
    assert bytes(reader.pread(4096, i * 4096)) == bytes([i + 1]) * 4096
more = [socket.socket(socket.AF_UNIX) for _ in range(20)]
for extra in more:
    extra.setblocking(False)
    try:
        extra.connect(SOCKET)
    except BlockingIOError:
        pass  # the queue of the socket is full: that is an answer, too
for i, h in enumerate(clients):
    works(h, i * 4096)
for extra in more:
    extra.close()
# A thousand that come and go.
clients.pop().shutdown()
for i in range(1000):
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(60)
    raw.connect(SOCKET)
    if i % 100 == 0:
        assert raw.recv(8) == b"NBDMAGIC"
    raw.close()
works(clients[0])
