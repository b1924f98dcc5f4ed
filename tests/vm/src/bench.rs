//! What tests and benchmarks of block devices need inside a guest: load with its latencies, and a ublk device with nothing
//! behind it but its backing, to compare with.
//!
//! `farside-vm-bench serve BACKING STOP [copy|pages] [slots=N] [queues=N]` makes that device, says its path, and serves it until somebody
//! writes into the FIFO `STOP`; then it takes the device away and says what it did. It copies as Farside does; with `copy`, as Farside
//! does where it must; with `pages`, nothing that need not be. `farside-vm-bench load DEVICE WORKLOAD SECONDS
//! [RATE]` gives the device random work past the page cache and prints one line of JSON. A workload is `read`, `write` or `sync`
//! (a write and a flush), bytes and depth: `write-4096-32`. With a rate, so many begin in each second. `farside-vm-bench ran` says
//! for how long each thread of the guest has run: nanoseconds, its process's name, its own.
//! `farside-vm-bench spin` computes for ever. `farside-vm-bench end N` ends `/dev/ublkbN`, whoever uses it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use farside_blockio::{Buffer, FileDevice, OpenOptions, PlainQueue, Ring, Tag, Waker};
use farside_region::ByteOffset;
use farside_tests::verify::Rng;
use farside_ublk::{Device, Spec, held};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", backing, stop, ref options @ ..] => serve(Path::new(backing), Path::new(stop), options),
        ["load", device, workload, seconds] => load(Path::new(device), workload, seconds.parse()?, None),
        ["load", device, workload, seconds, rate] => load(Path::new(device), workload, seconds.parse()?, Some(rate.parse()?)),
        ["ran"] => ran(),
        ["spin"] => loop {
            // Long without a jump: of such the emulator does many in the time of one jump, and the guest's clock goes as fast.
            let next = |x: u64, n: u64| x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(7) ^ n;
            std::hint::black_box((0..128).fold(std::hint::black_box(1), next));
        },
        ["end", id] => Ok(farside_ublk::end_under_its_users(id.parse()?)?),
        _ => Err(
            "farside-vm-bench serve BACKING STOP [copy|pages] [slots=N] [queues=N] | load DEVICE WORKLOAD SECONDS [RATE] | ran | spin | end N"
                .into(),
        ),
    }
}

fn ran() -> Result<(), Failure> {
    let folders = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_process = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes()[0].is_ascii_digit());
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default(); // it may have ended meanwhile
    for process in folders(Path::new("/proc")).filter(is_process) {
        let name = read(process.join("comm"));
        for thread in folders(&process.join("task")) {
            let ran = read(thread.join("schedstat"));
            let ran = ran.split(' ').next().unwrap_or("0");
            println!("{ran}\t{}\t{}", name.trim(), read(thread.join("comm")).trim());
        }
    }
    Ok(())
}

fn serve(backing: &Path, stop: &Path, options: &[&str]) -> Result<(), Failure> {
    let number = |key| options.iter().find_map(|option| option.strip_prefix(key)).map(str::parse::<u16>).transpose();
    let slots = number("slots=")?;
    let device = FileDevice::open(backing, OpenOptions::at_once())?;
    let spec = Spec {
        token: 0xbe_ac | 1,
        queues: number("queues=")?.unwrap_or(1),
        depth: 128,
        io_bytes_max: 512 << 10,
        slots,
        copied: options.contains(&"copy"),
        accepted_faults: Vec::new(),
    };
    let shown = Device::claim(&spec, &device)?;
    let (path, way) = (shown.path(), shown.data_path().path);
    let wakers = (0..shown.queues()).map(|_| Waker::new()).collect::<Result<_, _>>()?;
    let (servers, handle) = shown.servers(wakers);
    let (ready, is_ready) = std::sync::mpsc::channel();
    let mut threads = Vec::new();
    for server in servers {
        let server = if options.contains(&"pages") { server.passing_pages() } else { server };
        let (queue, ready) = (PlainQueue::new(device.clone())?, ready.clone());
        let ready = move || ready.send(()).expect("somebody waits for it");
        let thread = std::thread::Builder::new().name("serve".to_owned());
        threads.push(thread.spawn(move || server.run(queue, ready).map(drop))?);
    }
    threads.iter().try_for_each(|_| is_ready.recv())?;
    shown.go_live()?;
    println!("{} {}", path.display(), way.as_str());
    std::fs::read(stop)?; // blocks until somebody has written there
    held(spec.token)?.ok_or("the device is gone")?.remove()?;
    for thread in threads {
        thread.join().map_err(|_| "the server panicked")?.map_err(|broken| broken.why)?;
    }
    let count = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
    let counters = handle.counters();
    println!("requests {} errors {} copied {}", count(&counters.requests), count(&counters.errors), count(&counters.copied));
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Sync,
}

/// What one slot of the queue is at.
struct Slot {
    began: Instant,
    flushing: bool,
}

fn load(path: &Path, workload: &str, seconds: u64, rate: Option<u64>) -> Result<(), Failure> {
    let mut words = workload.split('-');
    let kind = match words.next() {
        Some("read") => Kind::Read,
        Some("write") => Kind::Write,
        Some("sync") => Kind::Sync,
        _ => return Err(format!("{workload} is no workload").into()),
    };
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).ok_or("WORKLOAD is KIND-BYTES-DEPTH");
    let (bytes, depth) = (number()?, number()?);
    let device = FileDevice::open(path, OpenOptions::at_once())?;
    let places = device.size() / bytes;
    let mut rng = Rng(bytes ^ depth << 32);
    let mut buffers: Vec<Option<Buffer>> =
        (0..depth).map(|_| Buffer::alone(bytes as usize).map(Some)).collect::<io::Result<_>>()?;
    for buffer in buffers.iter_mut().flatten() {
        buffer.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&rng.draw().to_le_bytes()));
    }
    let mut ring = Ring::new(depth as u32 * 2)?;
    let (start, end) = (Instant::now(), Duration::from_secs(seconds));
    let mut slots: BTreeMap<u64, Slot> = BTreeMap::new();
    let mut latencies: Vec<u32> = Vec::with_capacity(1 << 20);
    let mut begun = 0u64;
    loop {
        let is_over = start.elapsed() >= end;
        // What may begin now.
        for id in 0..depth {
            let due = rate.is_none_or(|rate| start.elapsed().as_secs_f64() * rate as f64 >= begun as f64);
            if is_over || !due || slots.contains_key(&id) {
                continue;
            }
            let buffer = buffers[id as usize].take().expect("a free slot has its buffer");
            let offset = ByteOffset(rng.draw() % places * bytes);
            begun += 1;
            slots.insert(id, Slot { began: Instant::now(), flushing: false });
            match kind {
                Kind::Read => ring.read(Tag::queue(id), device.fd(), offset, buffer, 0..bytes as usize),
                Kind::Write | Kind::Sync => ring.write(Tag::queue(id), device.fd(), offset, buffer, 0..bytes as usize, false),
            }
        }
        if slots.is_empty() && is_over {
            break;
        }
        let pause = rate.map(|rate| Duration::from_secs_f64(begun as f64 / rate as f64).saturating_sub(start.elapsed()));
        ring.wait(pause.map(|pause| pause.max(Duration::from_micros(100))))?;
        while let Some(done) = ring.pop() {
            done.result?;
            let id = done.tag.id;
            if let Some(buffer) = done.buffer {
                buffers[id as usize] = Some(buffer);
            }
            let slot = slots.get_mut(&id).expect("it was begun");
            if kind == Kind::Sync && !slot.flushing {
                slot.flushing = true;
                ring.sync_data(Tag::queue(id), device.fd());
                continue;
            }
            latencies.push(slot.began.elapsed().as_micros() as u32);
            slots.remove(&id);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at =
        |share: f64| latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len().saturating_sub(1))).copied();
    let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|share| at(share).unwrap_or(0));
    let mean = latencies.iter().map(|us| f64::from(*us)).sum::<f64>() / latencies.len().max(1) as f64;
    let operations = latencies.len();
    let run_ns = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let run_ns = run_ns.split(' ').next().unwrap_or("0");
    println!(
        "{{\"operations\":{operations},\"iops\":{:.1},\"mean_us\":{mean:.0},\"p50_us\":{p50},\"p99_us\":{p99},\"p999_us\":{p999},\
         \"max_us\":{max},\"histogram\":{:?},\"run_ns\":{run_ns}}}",
        operations as f64 / seconds,
        histogram(&latencies)
    );
    Ok(())
}

/// Where steps of a histogram begin, and how many of some sorted numbers lie in each that is not empty. Each power of two has eight
/// steps.
fn histogram(sorted: &[u32]) -> Vec<[u64; 2]> {
    let step = |number: u32| number >> (number | 1).ilog2().saturating_sub(3) << (number | 1).ilog2().saturating_sub(3);
    sorted.chunk_by(|a, b| step(*a) == step(*b)).map(|alike| [step(alike[0]).into(), alike.len() as u64]).collect()
}

#[cfg(test)]
mod tests {
    use super::histogram;

    #[test]
    fn a_histogram_has_eight_steps_for_each_power_of_two() {
        assert_eq!(histogram(&[]), [[0; 2]; 0]);
        assert_eq!(histogram(&[0, 1, 1, 15, 16, 17, 18]), [[0, 1], [1, 2], [15, 1], [16, 2], [18, 1]]);
        assert_eq!(histogram(&[1023, 1024, 1151, 1152, u32::MAX]), [[960, 1], [1024, 2], [1152, 1], [15 << 28, 1]]);
    }
}
