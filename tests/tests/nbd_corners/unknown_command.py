# Commands and flags that nobody defined are refused one by one; the connection lives on. A request without its magic is not
# the protocol any more, and the server hangs up.
raw = Raw().go()
for kind in [6, 8, 9, 100, 0xFFFF]:  # what remains of the defined ones needs negotiation
    raw.send(raw.request(kind, 0, 0 if kind == 6 else 4096, flags=0x8000 if kind == 6 else 0, cookie=kind))
    error, cookie = raw.reply()
    assert cookie == kind and error == errno.EINVAL, (kind, error, cookie)
for flags in [0x8000, 0xFFE0]:
    raw.send(raw.request(0, 0, 4096, flags=flags))
    assert raw.reply()[0] == errno.EINVAL
raw.send(raw.request(3, 0, 0))
assert raw.reply()[0] == 0
raw.send(raw.request(0, 0, 4096, magic=0x12345678))
raw.hung_up()
# More than is ever sent: read far enough to be refused, or not at all.
raw = Raw().go()
raw.send(raw.request(1, 0, 0xFFFFFFFF))
raw.hung_up()
works(client())
