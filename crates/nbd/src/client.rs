//! A small blocking NBD client over a Unix socket, for demonstrations, tests and benchmarks, and the handshake for the kernel's
//! own client: simple replies, one request at a time. It does not reconnect: whoever verifies what survives a crash must see the connection break.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const INIT: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

const FLAG_C_FIXED_NEWSTYLE: u32 = 1;
const FLAG_C_NO_ZEROES: u32 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// Force unit access: the request is durable when it is answered.
pub const FLAG_FUA: u16 = 1;
/// Write zeroes without punching a hole.
pub const FLAG_NO_HOLE: u16 = 2;

/// A connection in transmission phase.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    size: u64,
    flags: u16,
    cookie: u64,
}

impl Client {
    /// Connects and enters transmission.
    ///
    /// # Errors
    /// When there is no server, or it refuses the export.
    pub fn connect(path: &Path, export: &str) -> io::Result<Self> {
        Self::over(UnixStream::connect(path)?, export)
    }

    /// Enters transmission over a connected socket.
    ///
    /// # Errors
    /// When the other end is no server, or refuses the export.
    pub fn over(mut socket: UnixStream, export: &str) -> io::Result<Self> {
        let mut hello = [0; 18];
        socket.read_exact(&mut hello)?;
        if be64(&hello[..8]) != INIT || be64(&hello[8..16]) != OPTION {
            return Err(invalid("not a newstyle NBD server"));
        }
        socket.write_all(&(FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES).to_be_bytes())?;
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0u16.to_be_bytes());
        let mut option = OPTION.to_be_bytes().to_vec();
        option.extend_from_slice(&OPT_GO.to_be_bytes());
        option.extend_from_slice(&(data.len() as u32).to_be_bytes());
        option.extend_from_slice(&data);
        socket.write_all(&option)?;
        let (mut size, mut flags) = (0, 0);
        loop {
            let mut head = [0; 20];
            socket.read_exact(&mut head)?;
            if be64(&head[..8]) != OPTION_REPLY {
                return Err(invalid("a reply without its magic"));
            }
            let (kind, len) = (be32(&head[12..16]), be32(&head[16..20]) as usize);
            if len > 64 << 10 {
                return Err(invalid("an option reply of more than 64 KiB"));
            }
            let mut body = vec![0; len];
            socket.read_exact(&mut body)?;
            match kind {
                REP_ACK => return Ok(Self { socket, size, flags, cookie: 0 }),
                REP_INFO if len == 12 && u16::from_be_bytes([body[0], body[1]]) == INFO_EXPORT => {
                    size = be64(&body[2..10]);
                    flags = u16::from_be_bytes([body[10], body[11]]);
                }
                REP_INFO => {}
                other => return Err(io::Error::other(format!("the server refused the export (reply {other:#x})"))),
            }
        }
    }

    /// Size of the export in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The transmission flags.
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Fails requests that take longer; `None` waits for ever.
    ///
    /// # Errors
    /// When the socket refuses the setting.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)?;
        self.socket.set_write_timeout(timeout)
    }

    /// Reads `buffer.len()` bytes at `offset`.
    ///
    /// # Errors
    /// The connection's, or the server's error for this request.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.request(0, 0, offset, buffer.len() as u32, &[])?;
        self.reply()?;
        self.socket.read_exact(buffer)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn write(&mut self, offset: u64, data: &[u8], flags: u16) -> io::Result<()> {
        self.request(1, flags, offset, data.len() as u32, data)?;
        self.reply()
    }

    /// Makes everything acknowledged so far durable.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(3, 0, 0, 0, &[])?;
        self.reply()
    }

    /// Discards; it reads back as zeroes.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn trim(&mut self, offset: u64, len: u32) -> io::Result<()> {
        self.request(4, 0, offset, len, &[])?;
        self.reply()
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub fn write_zeroes(&mut self, offset: u64, len: u32, flags: u16) -> io::Result<()> {
        self.request(6, flags, offset, len, &[])?;
        self.reply()
    }

    /// The socket, for somebody else to go on with: nothing is under way on it.
    pub fn into_socket(self) -> UnixStream {
        self.socket
    }

    /// Says good-bye.
    ///
    /// # Errors
    /// When the connection is broken already.
    pub fn disconnect(mut self) -> io::Result<()> {
        self.request(2, 0, 0, 0, &[])
    }

    fn request(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&command.to_be_bytes());
        head[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..28].copy_from_slice(&len.to_be_bytes());
        self.socket.write_all(&head)?;
        self.socket.write_all(data)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head)?;
        if be32(&head[..4]) != SIMPLE_REPLY || be64(&head[8..16]) != self.cookie {
            return Err(invalid("a reply that answers nothing we asked"));
        }
        match be32(&head[4..8]) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno as i32)),
        }
    }
}

fn be32(b: &[u8]) -> u32 {
    u32::from_be_bytes(b.try_into().expect("four bytes"))
}

fn be64(b: &[u8]) -> u64 {
    u64::from_be_bytes(b.try_into().expect("eight bytes"))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
