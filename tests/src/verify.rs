//! A verifying NBD client: it knows what every sector may hold, through any number of broken connections.
//!
//! A sector holds what the last acknowledged write put there, or what a write put there whose answer never came (old or
//! new, sector by sector, for sectors do not tear). Reading decides: what was read once must be read ever after.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farside_nbd::client::{Client, FLAG_FUA};

/// What a stamp is written over.
pub const SECTOR: u64 = 512;

/// Seeded numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// The content of a sector: 0 is zeroes, anything else a pattern made from it and the sector's place.
fn fill(sector: u64, stamp: u32, out: &mut [u8]) {
    if stamp == 0 {
        return out.fill(0);
    }
    let mut rng = Rng(sector << 32 ^ u64::from(stamp));
    out[..4].copy_from_slice(&stamp.to_le_bytes());
    for chunk in out[4..].chunks_mut(8) {
        let bytes = rng.draw().to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
    }
}

/// The stamp that a sector holds; `None` when it is nothing that anybody wrote there.
fn stamp_of(sector: u64, data: &[u8]) -> Option<u32> {
    let stamp = u32::from_le_bytes(data[..4].try_into().expect("four bytes"));
    let mut want = vec![0; data.len()];
    fill(sector, stamp, &mut want);
    (want == data).then_some(stamp)
}

/// The client and its model of the volume.
#[derive(Debug)]
pub struct Verifier {
    socket: PathBuf,
    client: Option<Client>,
    holds: Vec<u32>,
    maybe: Vec<Vec<u32>>,
    stamp: u32,
    /// Requests acknowledged.
    pub acknowledged: u64,
    /// Connections that broke under a request.
    pub broken: u64,
}

impl Verifier {
    /// A client of a zeroed volume of `bytes`.
    pub fn new(socket: &Path, bytes: u64) -> Self {
        let sectors = (bytes / SECTOR) as usize;
        Self {
            socket: socket.to_owned(),
            client: None,
            holds: vec![0; sectors],
            maybe: vec![Vec::new(); sectors],
            stamp: 0,
            acknowledged: 0,
            broken: 0,
        }
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.holds.len() as u64 * SECTOR
    }

    /// One request of a random kind and size (a multiple of `unit` bytes). A broken connection is no failure: it is
    /// made anew at the next request.
    ///
    /// # Panics
    /// When the server answers with an error, or does not come back.
    pub fn step(&mut self, rng: &mut Rng, unit: u64) {
        let sectors = self.holds.len() as u64;
        let per = unit / SECTOR;
        let len = match rng.below(10) {
            0..=5 => per,
            6..=7 => per * (1 + rng.below(8)),
            8 => per * (1 + rng.below(64)),
            _ => per * (1 + rng.below(256)),
        };
        // Half of it on a small hot spot, so that cuts meet writes.
        let room = if rng.below(2) == 0 { sectors / 16 } else { sectors };
        let len = len.min(room / per * per).max(per);
        let first = rng.below((room - len) / per + 1) * per;
        self.stamp += 1;
        let (stamp, kind) = (self.stamp, rng.below(20));
        let flags = if rng.below(16) == 0 { FLAG_FUA } else { 0 };
        let result = match kind {
            0 => self.with(|c| c.flush()).map(|()| None),
            1 => self.with(|c| c.trim(first * SECTOR, (len * SECTOR) as u32)).map(|()| Some(0)),
            2 => self.with(|c| c.write_zeroes(first * SECTOR, (len * SECTOR) as u32, 0)).map(|()| Some(0)),
            3 => return self.check(first, len),
            _ => {
                let mut data = vec![0; (len * SECTOR) as usize];
                for (i, chunk) in data.chunks_mut(SECTOR as usize).enumerate() {
                    fill(first + i as u64, stamp, chunk);
                }
                self.with(|c| c.write(first * SECTOR, &data, flags)).map(|()| Some(stamp))
            }
        };
        let range = first as usize..(first + len) as usize;
        match result {
            Ok(None) => self.acknowledged += 1,
            Ok(Some(value)) => {
                self.acknowledged += 1;
                self.holds[range.clone()].fill(value);
                self.maybe[range].iter_mut().for_each(Vec::clear);
            }
            Err(()) if kind != 0 => {
                let value = if kind <= 2 { 0 } else { stamp };
                self.maybe[range].iter_mut().for_each(|m| m.push(value));
            }
            Err(()) => {}
        }
    }

    /// So many requests more that are acknowledged, in units of a page.
    ///
    /// # Panics
    /// As [`Verifier::step`].
    pub fn steps(&mut self, rng: &mut Rng, requests: u64) {
        let until = self.acknowledged + requests;
        while self.acknowledged < until {
            self.step(rng, 4096);
        }
    }

    /// Fills everything from `first_byte` on with what no compression shortens, in requests of a MiB.
    ///
    /// # Panics
    /// When the server answers with an error, or goes away.
    pub fn write_all_from(&mut self, first_byte: u64) {
        self.stamp += 1;
        let stamp = self.stamp;
        let sectors = self.holds.len() as u64;
        let mut data = vec![0; 1 << 20];
        let per = data.len() as u64 / SECTOR;
        for first in (first_byte / SECTOR..sectors).step_by(per as usize) {
            let len = per.min(sectors - first);
            let data = &mut data[..(len * SECTOR) as usize];
            for (i, chunk) in data.chunks_mut(SECTOR as usize).enumerate() {
                fill(first + i as u64, stamp, chunk);
            }
            self.with(|c| c.write(first * SECTOR, data, 0)).expect("the server stays");
            self.acknowledged += 1;
            self.holds[first as usize..(first + len) as usize].fill(stamp);
        }
    }

    /// Reads sectors and compares. A broken connection leaves them for another time.
    fn check(&mut self, first: u64, len: u64) {
        let mut data = vec![0; (len * SECTOR) as usize];
        if self.with(|c| c.read(first * SECTOR, &mut data)).is_err() {
            return;
        }
        self.acknowledged += 1;
        for (i, chunk) in data.chunks(SECTOR as usize).enumerate() {
            let sector = first as usize + i;
            let found = stamp_of(sector as u64, chunk);
            let allowed = found.is_some_and(|f| f == self.holds[sector] || self.maybe[sector].contains(&f));
            assert!(allowed, "sector {sector}: holds {found:?}, may hold {} or {:?}", self.holds[sector], self.maybe[sector]);
            self.holds[sector] = found.expect("checked above");
            self.maybe[sector].clear();
        }
    }

    /// Reads everything and compares.
    ///
    /// # Panics
    /// When a sector holds what it must not, or the server does not come back.
    pub fn check_all(&mut self) {
        let all = self.holds.len() as u64;
        let mut at = 0;
        while at < all {
            let len = (all - at).min(2048);
            let before = self.acknowledged;
            self.check(at, len);
            if self.acknowledged > before {
                at += len;
            }
        }
    }

    /// Compares an image with what the volume holds, after [`Verifier::check_all`].
    ///
    /// # Panics
    /// When they differ.
    pub fn compare_image(&self, image: &[u8], what: &str) {
        assert_eq!(image.len() as u64, self.bytes(), "{what}: size");
        for (sector, chunk) in image.chunks(SECTOR as usize).enumerate() {
            let found = stamp_of(sector as u64, chunk);
            assert_eq!(found, Some(self.holds[sector]), "{what}: sector {sector}");
        }
    }

    /// Flushes, reconnecting until it is acknowledged.
    pub fn flush(&mut self) {
        while self.with(|c| c.flush()).is_err() {}
    }

    /// `Err` when the connection broke under the request.
    fn with(&mut self, request: impl FnOnce(&mut Client) -> io::Result<()>) -> Result<(), ()> {
        if self.client.is_none() {
            self.client = Some(connect(&self.socket));
        }
        match request(self.client.as_mut().expect("connected above")) {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error().is_some_and(|n| matches!(n, libc::EPIPE | libc::ECONNRESET | libc::ECONNABORTED)) => {
                self.break_off()
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => self.break_off(),
            Err(e) => panic!("the server answered a valid request with an error: {e}"),
        }
    }

    fn break_off(&mut self) -> Result<(), ()> {
        self.client = None;
        self.broken += 1;
        Err(())
    }
}

/// Connects, waiting up to a minute for a server.
///
/// # Panics
/// When none comes.
pub fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Client::connect(socket, "") {
            Ok(client) => {
                client.set_timeout(Some(Duration::from_secs(120))).expect("a socket takes a time-out");
                return client;
            }
            Err(e) => assert!(Instant::now() < deadline, "nobody serves {}: {e}", socket.display()),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Writes pieces of up to 32 KiB of content that no compression shortens, anywhere in the first `bytes` of the volume behind `tap`, and
/// flushes. Says how many bytes were written.
///
/// # Panics
/// When the tap does not take them.
pub fn write_noise(tap: &Path, bytes: u64, seed: u64, requests: u64) -> u64 {
    const GRANULE: u64 = 4096;
    let mut client = connect(tap);
    let (mut rng, mut written) = (Rng(seed), 0);
    for _ in 0..requests {
        let len = (1 + rng.below(8)) * GRANULE;
        let content: Vec<u8> = (0..len / 8).flat_map(|_| rng.draw().to_le_bytes()).collect();
        client.write(rng.below((bytes - len) / GRANULE) * GRANULE, &content, 0).expect("a write");
        written += len;
    }
    client.flush().expect("a flush");
    written
}
