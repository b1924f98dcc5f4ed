# What the scripts share: nbdsh gives `nbd`, the test gives SOCKET. Each script runs in the lower MiB of the volume.
import errno, os, socket, struct

SOCKET = os.environ["SOCKET"]
MIB = 1 << 20


def client(strict=0):
    """A libnbd handle that sends what it is told, however wrong."""
    handle = nbd.NBD()
    handle.set_strict_mode(strict)
    handle.connect_unix(SOCKET)
    return handle


def refused(number, call):
    """`call` must fail with this error, and with no other."""
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, f"wanted {errno.errorcode[number]}: {error}"
    else:
        raise AssertionError(f"was accepted, wanted {errno.errorcode[number]}")


def works(handle, at=0):
    """The handle is as good as new."""
    content = os.urandom(4096)
    handle.pwrite(content, at)
    assert bytes(handle.pread(4096, at)) == content


class Raw:
    """The protocol by hand, for what no library sends."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(SOCKET)
        hello = self.take(18)
        assert hello[:16] == b"NBDMAGICIHAVEOPT", hello
        self.send(struct.pack(">I", 3))

    def send(self, data):
        self.socket.sendall(data)

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def hung_up(self):
        """The server ends the connection; anything it says before is read."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionError:
            pass

    def option(self, number, data=b""):
        self.send(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)

    def answer(self):
        """Of an option: its kind."""
        magic, option, kind, length = struct.unpack(">QIII", self.take(20))
        assert magic == 0x3E889045565A9
        self.take(length)
        return kind

    def go(self):
        self.option(7, struct.pack(">IH", 0, 0))
        while self.answer() != 1:
            pass
        return self

    def request(self, kind, offset, length, flags=0, cookie=7, magic=0x25609513):
        return struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, length)

    def reply(self):
        """Of a request: its error and cookie."""
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert magic == 0x67446698, hex(magic)
        return error, cookie
