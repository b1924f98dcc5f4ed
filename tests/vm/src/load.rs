//! The load: what an application does to a file system of a guest, and how it would notice that something went wrong.
//!
//! `farside-vm-load write FOLDER PROGRESS STOP [PAUSE_MS]` writes records into a fixed set of files, each record synced and then said to be
//! in `PROGRESS` (`FILE NUMBER`, one line each), and reads what is already there past the page cache, until `STOP` exists, with a
//! pause after each record. It ends with failure at the first error or wrong byte. `farside-vm-load check FOLDER PROGRESS` reads every record that
//! `PROGRESS` promises, or a newer one: what a power cut may leave. `farside-vm-load put DEVICE AT BYTES flush|fua|nothing` writes
//! something there past the page cache, and ends when the device has said that it is durable, or at once.
//! `farside-vm-load count FIRST SECOND PROGRESS FROM` counts on two devices for ever: on the second only after the first has called a
//! number durable. `farside-vm-load counts ADDRESS:PORT DEVICE` counts for a `count` of another machine, whose SECOND is `tcp:ADDRESS:PORT`:
//! both are connected there to each other.
//! `farside-vm-load hop DEVICE AT CPU PROGRESS FROM` counts at two places of one device, `AT` and half of its length
//! behind that: at the second, on the other of two processors, only after the first has been written. `farside-vm-load counter IMAGE
//! [AT]` says how far it had come at one of them.
//!
//! A record's content follows from its file and number alone. A file has room for two, written in turns, so that one is whole
//! while the other is being written.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

const FILES: u64 = 16;
const RECORD: usize = 64 << 10;
const O_DIRECT: i32 = 0x4000;
const O_DSYNC: i32 = 0x1000;
const ALIGN: usize = 4096;
/// Numbers that are counted go round so many places, so far apart; the newest counts.
const PLACES: u64 = 64;
const PLACE: u64 = 16 << 10;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write", folder, progress, stop] => write(Path::new(folder), Path::new(progress), Path::new(stop), Duration::ZERO),
        ["write", folder, progress, stop, pause_ms] => {
            write(Path::new(folder), Path::new(progress), Path::new(stop), Duration::from_millis(number(pause_ms)?))
        }
        ["check", folder, progress] => check(Path::new(folder), Path::new(progress)),
        ["count", first, second, progress, from] => count(Path::new(first), second, Path::new(progress), number(from)?),
        ["counts", address, device] => count_for_another(address, Path::new(device)),
        ["hop", device, at, cpu, progress, from] => {
            hop(Path::new(device), number(at)?, number(cpu)?, Path::new(progress), number(from)?)
        }
        ["counter", image] => counter(Path::new(image), 0),
        ["counter", image, at] => counter(Path::new(image), number(at)?),
        ["put", device, at, bytes, how] => put(Path::new(device), number(at)?, number(bytes)?, how),
        _ => Err(io::Error::other(
            "farside-vm-load write FOLDER PROGRESS STOP [PAUSE_MS] | check FOLDER PROGRESS | put DEVICE AT BYTES flush|fua|nothing | \
             count FIRST SECOND PROGRESS FROM | counts ADDRESS:PORT DEVICE | hop DEVICE AT CPU PROGRESS FROM | counter IMAGE [AT]",
        )),
    }
}

fn write(folder: &Path, progress: &Path, stop: &Path, pause: Duration) -> io::Result<()> {
    let mut progress = File::options().create(true).append(true).open(progress)?;
    let files: Vec<File> = (0..FILES)
        .map(|file| File::options().create(true).truncate(false).write(true).open(folder.join(name(file))))
        .collect::<io::Result<_>>()?;
    let mut buffer = vec![0; RECORD + ALIGN];
    for number in 1.. {
        for file in 0..FILES {
            if stop.exists() {
                return Ok(());
            }
            files[file as usize].write_all_at(&record(file, number), place(number))?;
            files[file as usize].sync_data()?;
            writeln!(progress, "{file} {number}")?;
            // The one that was written longest ago.
            let oldest = (file + 1) % FILES;
            let expected = if oldest > file { number - 1 } else { number };
            if expected > 0 && read(folder, oldest, place(expected), &mut buffer)? != Some(expected) {
                return Err(io::Error::other(format!("file {oldest} is not at record {expected}")));
            }
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
    }
    Ok(())
}

fn check(folder: &Path, progress: &Path) -> io::Result<()> {
    let mut promised = [0; FILES as usize];
    for line in std::fs::read_to_string(progress)?.lines() {
        let mut words = line.split(' ').map(|word| word.parse::<u64>());
        let (Some(Ok(file)), Some(Ok(number))) = (words.next(), words.next()) else { continue }; // cut short
        promised[file as usize] = number;
    }
    let mut buffer = vec![0; RECORD + ALIGN];
    for (file, &promised) in promised.iter().enumerate() {
        if promised > 0 {
            let mut whole = |slot| read(folder, file as u64, place(slot), &mut buffer);
            let newest = whole(0)?.max(whole(1)?);
            if newest < Some(promised) {
                return Err(io::Error::other(format!("file {file} is at record {newest:?}, and {promised} was synced")));
            }
        }
    }
    println!("{promised:?}");
    Ok(())
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|error| io::Error::other(format!("{word}: {error}")))
}

fn put(device: &Path, at: u64, bytes: u64, how: &str) -> io::Result<()> {
    let mut buffer = vec![0; bytes as usize + ALIGN];
    let aligned = buffer.as_ptr().align_offset(ALIGN);
    let buffer = &mut buffer[aligned..aligned + bytes as usize];
    for (i, chunk) in buffer.chunks_mut(RECORD).enumerate() {
        chunk.copy_from_slice(&record(at, i as u64)[..chunk.len()]);
    }
    let flags = if how == "fua" { O_DIRECT | O_DSYNC } else { O_DIRECT };
    let to = File::options().write(true).custom_flags(flags).open(device)?;
    to.write_all_at(buffer, at)?;
    if how == "flush" { to.sync_data() } else { Ok(()) }
}

fn durable(device: &Path) -> io::Result<File> {
    File::options().write(true).custom_flags(O_DIRECT | O_DSYNC).open(device)
}

fn count(first: &Path, second: &str, progress: &Path, from: u64) -> io::Result<()> {
    let first = durable(first)?;
    let write = |device: &File, n: u64, block: &[u8]| device.write_all_at(block, n % PLACES * PLACE);
    let Some(address) = second.strip_prefix("tcp:") else {
        let second = durable(Path::new(second))?;
        return numbers(progress, from, |n, block| write(&first, n, block).and_then(|()| write(&second, n, block)));
    };
    let mut second = TcpStream::connect(address)?;
    second.set_nodelay(true)?;
    numbers(progress, from, |n, block| {
        write(&first, n, block)?;
        second.write_all(&n.to_le_bytes())?;
        second.read_exact(&mut [0; 8])
    })
}

/// Until who asks for it has gone.
fn count_for_another(address: &str, device: &Path) -> io::Result<()> {
    let device = durable(device)?;
    let mut asker = TcpStream::connect(address)?;
    asker.set_nodelay(true)?;
    let mut buffer = vec![0; 2 * ALIGN];
    let aligned = buffer.as_ptr().align_offset(ALIGN);
    let block = &mut buffer[aligned..aligned + ALIGN];
    let mut number = [0; 8];
    while asker.read_exact(&mut number).is_ok() {
        block[..8].copy_from_slice(&number);
        device.write_all_at(block, u64::from_le_bytes(number) % PLACES * PLACE)?;
        asker.write_all(&number)?;
    }
    Ok(())
}

/// Writes numbers from `from` on, each in an aligned block of its own, and says of each that it was written.
fn numbers(progress: &Path, from: u64, mut write: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut progress = File::options().create(true).append(true).open(progress)?;
    let mut buffer = vec![0; 2 * ALIGN];
    let aligned = buffer.as_ptr().align_offset(ALIGN);
    let block = &mut buffer[aligned..aligned + ALIGN];
    for n in from.. {
        block[..8].copy_from_slice(&n.to_le_bytes());
        write(n, block)?;
        writeln!(progress, "{n}")?;
    }
    Ok(())
}

fn hop(device: &Path, at: u64, cpu: u64, progress: &Path, from: u64) -> io::Result<()> {
    let mut device = File::options().write(true).custom_flags(O_DIRECT).open(device)?;
    let half = io::Seek::seek(&mut device, io::SeekFrom::End(0))? / 2;
    numbers(progress, from, |n, block| {
        for (cpu, at) in [(cpu, at), (1 - cpu, at + half)] {
            let mut alone = CpuSet::new();
            alone.set(cpu as usize)?;
            sched_setaffinity(Pid::from_raw(0), &alone)?;
            device.write_all_at(block, at + n % PLACES * PLACE)?;
        }
        Ok(())
    })
}

fn counter(image: &Path, at: u64) -> io::Result<()> {
    let image = File::open(image)?;
    let mut newest = 0;
    for place in 0..PLACES {
        let mut number = [0; 8];
        image.read_exact_at(&mut number, at + place * PLACE)?;
        newest = newest.max(u64::from_le_bytes(number));
    }
    println!("{newest}");
    Ok(())
}

fn place(number: u64) -> u64 {
    number % 2 * RECORD as u64
}

/// The number of the record that a file holds there, if it is whole and of that file.
fn read(folder: &Path, file: u64, place: u64, buffer: &mut [u8]) -> io::Result<Option<u64>> {
    let at = buffer.as_ptr().align_offset(ALIGN);
    let buffer = &mut buffer[at..at + RECORD];
    let from = File::options().read(true).custom_flags(O_DIRECT).open(folder.join(name(file)))?;
    match from.read_exact_at(buffer, place) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let number = u64::from_le_bytes(buffer[..8].try_into().expect("eight bytes"));
    Ok((number > 0 && buffer == record(file, number)).then_some(number))
}

fn record(file: u64, number: u64) -> Vec<u8> {
    let mut rng = farside_tests::verify::Rng(file << 32 ^ number);
    let mut record = number.to_le_bytes().to_vec();
    while record.len() < RECORD {
        record.extend_from_slice(&rng.draw().to_le_bytes());
    }
    record
}

fn name(file: u64) -> String {
    format!("records-{file}")
}
