# The last block is there, the next is not, and no sum of offset and length comes round.
h = client()
size, block = h.get_size(), h.get_block_size(nbd.SIZE_MINIMUM)
last = bytes(h.pread(block, size - block))
h.pwrite(last, size - block)
top = (1 << 64) - block
for offset in [size, size - block, size + (1 << 40), 1 << 63, top]:
    length = 2 * block
    refused(errno.EINVAL, lambda: h.pread(length, offset))
    refused(errno.ENOSPC, lambda: h.pwrite(b"\x55" * length, offset))
    refused(errno.ENOSPC, lambda: h.zero(length, offset))
    refused(errno.EINVAL, lambda: h.trim(length, offset))
assert bytes(h.pread(block, size - block)) == last
works(h)
