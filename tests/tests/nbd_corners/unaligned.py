# Below the announced block size nothing is read, written or rounded.
h = client()
block = h.get_block_size(nbd.SIZE_MINIMUM)
assert block >= 512 and h.get_block_size(nbd.SIZE_MAXIMUM) >= MIB
h.pwrite(b"\xaa" * 2 * block, 0)
for offset, length in [(1, block), (block // 2, block), (0, block - 1), (0, 1), (block, block + 1), (block - 1, 1)]:
    refused(errno.EINVAL, lambda: h.pread(length, offset))
    refused(errno.EINVAL, lambda: h.pwrite(b"\x55" * length, offset))
    refused(errno.EINVAL, lambda: h.trim(length, offset))
    refused(errno.EINVAL, lambda: h.zero(length, offset))
assert bytes(h.pread(2 * block, 0)) == b"\xaa" * 2 * block
works(h)
