# Nothing, done to nothing: answered, or refused by name; never more than that.
h = client()
before = bytes(h.pread(MIB, 0))
for call in [
    lambda: h.pread(0, 0),
    lambda: h.pwrite(b"", 0),
    lambda: h.pwrite(b"", 0, nbd.CMD_FLAG_FUA),
    lambda: h.trim(0, 0),
    lambda: h.zero(0, 4096),
]:
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EINVAL, error
assert bytes(h.pread(MIB, 0)) == before
works(h)
