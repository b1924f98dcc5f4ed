//! The server over real sockets: to a real file, and to a volume in memory that can be held and made to fail.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::thread::JoinHandle;

use farside_blockio::{
    BlockQueue, Completion, Done, Errno, FileDevice, MemQueue, Op, OpenOptions, PlainQueue, QueueInfo, Request, Ring, Waker,
};
use farside_nbd::proto::{command, command_flag, error};
use farside_nbd::{Handle, Limits, Listener, ServeError, Server, SocketOptions};
use tempfile::TempDir;

use client::Client;

mod client;

const SIZE: u64 = 8 << 20;

struct Served<Q> {
    path: PathBuf,
    handle: Handle,
    thread: JoinHandle<Result<Q, ServeError>>,
    _folder: TempDir,
}

fn serve<Q: BlockQueue + Send + 'static>(queue: Q, limits: Limits) -> Served<Q> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nbd");
    let listener = Listener::bind(&SocketOptions { path: path.clone(), group: None }).unwrap();
    let (server, handle) = Server::new(listener, "disk", "", limits, Waker::new().unwrap());
    let thread = std::thread::spawn(move || server.run(queue));
    Served { path, handle, thread, _folder: folder }
}

impl<Q> Served<Q> {
    fn client(&self) -> Client {
        Client::connect(&self.path, true)
    }

    fn stop(self) -> Q {
        self.handle.stop();
        let queue = self.thread.join().unwrap().unwrap();
        assert!(self.handle.drained() && !self.path.exists());
        assert_eq!(count(&self.handle.counters().jobs), 0);
        queue
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(SeqCst)
}

fn memory() -> MemQueue {
    MemQueue::new(QueueInfo {
        size: SIZE,
        block_min: 512,
        block_preferred: 4096,
        readonly: false,
        zeroes_fast: true,
        trims: true,
    })
}

/// Limits under which commands are split and wait.
fn small() -> Limits {
    Limits {
        connections_max: 4,
        jobs_per_connection_max: 4,
        pieces_max: 16,
        piece_bytes_max: 64 << 10,
        payload_max: 1 << 20,
        buffer_bytes_max: 3 << 19,
        farewell_max: std::time::Duration::from_millis(100),
        deaf_max: std::time::Duration::from_secs(600),
        handshake_max: std::time::Duration::from_secs(600),
    }
}

fn file() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("disk");
    std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    (folder, path)
}

fn open(path: &std::path::Path) -> PlainQueue {
    PlainQueue::new(FileDevice::open(path, OpenOptions::at_once()).unwrap()).unwrap()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

#[test]
fn random_commands_on_a_file_agree_with_a_model() {
    for (structured, limits) in [(true, Limits::default()), (false, small()), (true, small())] {
        let (_folder, path) = file();
        let served = serve(open(&path), limits);
        let mut client = Client::connect(&served.path, structured);
        let mut model = vec![0u8; SIZE as usize];
        let mut dice = pattern(7, 4000).into_iter().map(u64::from);
        for round in 0..200u64 {
            let mut roll = || dice.next().unwrap();
            let (kind, a, b, c) = (roll() % 6, roll() << 8 | roll(), roll() << 8 | roll(), roll());
            let offset = (a * 1999 * 512) % SIZE;
            let longest = if c % 4 == 0 { 1 << 20 } else { 64 << 10 };
            let len = ((b * 512) % longest + 512).min(SIZE - offset);
            let at = offset as usize..(offset + len) as usize;
            let fua = if c % 3 == 0 { command_flag::FUA } else { 0 };
            let len = len as u32;
            match kind {
                0 | 1 => {
                    let data = pattern(round, len as usize);
                    assert_eq!(client.call(command::WRITE, fua, offset, len, &data).error, 0);
                    model[at].copy_from_slice(&data);
                }
                2 => assert_eq!(client.read(offset, len), model[at], "round {round}"),
                3 => {
                    assert_eq!(client.call(command::TRIM, fua, offset, len, &[]).error, 0);
                    model[at].fill(0);
                }
                4 => {
                    let no_hole = if c % 2 == 0 { command_flag::NO_HOLE } else { 0 };
                    assert_eq!(client.call(command::WRITE_ZEROES, fua | no_hole, offset, len, &[]).error, 0);
                    model[at].fill(0);
                }
                _ => assert_eq!(client.flush(), 0),
            }
        }
        assert!(client.read(0, 1 << 20) == model[..1 << 20]);
        drop(served.stop());
        assert!(std::fs::read(&path).unwrap() == model);
    }
}

#[test]
fn block_status_shows_holes_data_and_what_trim_did() {
    let (_folder, path) = file();
    let served = serve(open(&path), Limits::default());
    let mut client = served.client();
    assert_eq!(client.write(1 << 20, &pattern(1, 1 << 20)), 0);
    assert_eq!(client.flush(), 0);
    let status = |client: &mut Client, flags| client.call(command::BLOCK_STATUS, flags, 0, 4 << 20, &[]).status;
    let m = 1 << 20;
    assert_eq!(status(&mut client, 0), [(m, 3), (m, 0), (2 * m, 3)]);
    assert_eq!(status(&mut client, command_flag::REQ_ONE), [(m, 3)]);
    assert_eq!(client.call(command::TRIM, 0, 1 << 20, m, &[]).error, 0);
    assert_eq!(status(&mut client, 0), [(4 * m, 3)]);
    let reply = client.call(command::READ, 0, 0, m, &[]);
    assert_eq!((reply.error, reply.holes), (0, 1), "zeroes are sent as a hole");
}

#[test]
fn several_clients_see_each_others_writes() {
    let (_folder, path) = file();
    let served = serve(open(&path), small());
    let writers: Vec<_> = (0..4u64)
        .map(|number| {
            let path = served.path.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&path, number % 2 == 0);
                for round in 0..20 {
                    let offset = (number * 20 + round) * (100 << 10);
                    assert_eq!(client.write(offset, &pattern(offset, 100 << 10)), 0);
                }
                assert_eq!(client.flush(), 0);
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let mut client = served.client();
    for number in 0..80 {
        let offset = number * (100 << 10);
        assert!(client.read(offset, 100 << 10) == pattern(offset, 100 << 10), "block {number}");
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_write_hurts_nobody() {
    let memory = memory();
    let served = serve(memory.clone(), small());
    let mut other = served.client();
    for (sent, landed) in [(0, 0), (1, 0), (65535, 0), (65536, 1), (70_000, 1), (262_143, 3)] {
        let mut client = served.client();
        let before = memory.log().len();
        let (mut bytes, _) = client.encode(command::WRITE, 0, 0, 256 << 10);
        bytes.extend(vec![7; sent]);
        client.send(&bytes);
        client.socket.shutdown(Shutdown::Write).unwrap();
        client.assert_hung_up();
        assert_eq!(memory.log().len() - before, landed, "only whole pieces reach the device");
        assert_eq!(other.write(4 << 20, &[1; 512]), 0);
    }
    assert_eq!(served.stop().content()[4 << 20], 1);
}

#[test]
fn half_a_request_and_garbage_end_only_their_own_connection() {
    let served = serve(memory(), small());
    let mut other = served.client();
    let mut client = served.client();
    let (bytes, _) = client.encode(command::READ, 0, 0, 512);
    client.send(&bytes[..27]);
    client.socket.shutdown(Shutdown::Write).unwrap();
    client.assert_hung_up();
    let mut client = served.client();
    client.send(&[0x55; 100]);
    client.assert_hung_up();
    let mut client = served.client();
    client.request(command::DISC, 0, 0, 0, &[]);
    client.assert_hung_up();
    assert_eq!(other.read(0, 512), [0; 512]);
}

#[test]
fn a_half_closed_client_still_gets_its_replies() {
    let memory = memory();
    memory.hold(true);
    let served = serve(memory.clone(), small());
    let mut client = served.client();
    client.request(command::WRITE, 0, 0, 512, &[3; 512]);
    client.call(command::BLOCK_STATUS, 0, 0, 512, &[]); // in order: the write is in the queue now
    client.socket.shutdown(Shutdown::Write).unwrap();
    memory.hold(false);
    served.handle.waker().wake();
    assert_eq!(client.reply(|_| (0, 0)).1.error, 0);
    client.assert_hung_up();
}

#[test]
fn parked_requests_go_on_at_a_wake_and_others_pass() {
    let memory = memory();
    memory.hold(true);
    let served = serve(memory.clone(), small());
    let mut client = served.client();
    let cookie = client.request(command::WRITE, command_flag::FUA, 512, 512, &[9; 512]);
    let status = client.call(command::BLOCK_STATUS, 0, 0, 4096, &[]);
    assert_eq!((status.status, memory.parked()), (vec![(4096, 3)], 1));
    memory.hold(false);
    served.handle.waker().wake();
    assert_eq!(client.reply(|_| (0, 0)), (cookie, client::Reply::default()));
    assert_eq!(served.stop().log()[0], (Op::Write, extent(512, 512), true));
}

/// What a client sent over a line that died is with the disk, and is sent again over the next one, as something newer is: the old one must not land last.
#[test]
fn who_comes_anew_changes_nothing_before_what_was_under_way_has_ended() {
    for leaves in [true, false] {
        let memory = memory();
        memory.hold(true);
        let served = serve(memory.clone(), small());
        let commands = || count(&served.handle.counters().commands);
        let mut old = served.client();
        old.request(command::WRITE, 0, 0, 512, &[1; 512]);
        while memory.parked() == 0 {
            std::thread::yield_now();
        }
        let line = if leaves { None } else { Some(old) };
        let mut new = served.client();
        let before = commands();
        new.request(command::WRITE, 0, 0, 512, &[2; 512]);
        while commands() == before {
            std::thread::yield_now();
        }
        // Whoever asks for something is served in turn: by then the write would have begun.
        let mut other = served.client();
        other.call(command::BLOCK_STATUS, 0, 0, 512, &[]);
        assert_eq!(memory.parked(), 1, "it overtakes what was under way");
        memory.hold(false);
        served.handle.waker().wake();
        assert_eq!(new.reply(|_| (0, 0)).1.error, 0);
        // From then on nobody waits for anybody.
        memory.hold(true);
        other.request(command::WRITE, 0, 512, 512, &[3; 512]);
        new.request(command::WRITE, 0, 1024, 512, &[4; 512]);
        while memory.parked() < 2 {
            std::thread::yield_now();
        }
        memory.hold(false);
        served.handle.waker().wake();
        drop(line);
        let content = served.stop().content();
        assert_eq!((content[0], content[512], content[1024]), (2, 3, 4));
    }
}

/// It may never send the rest.
#[test]
fn who_comes_anew_does_not_wait_for_a_client_that_stops_in_the_middle_of_a_write() {
    let memory = memory();
    let served = serve(memory.clone(), small());
    let mut stuck = served.client();
    let commands = || count(&served.handle.counters().commands);
    let before = commands();
    let (mut bytes, _) = stuck.encode(command::WRITE, 0, 0, 256 << 10);
    bytes.extend([1; 70_000]);
    stuck.send(&bytes);
    while commands() == before {
        std::thread::yield_now();
    }
    let mut new = served.client();
    assert_eq!(new.write(1 << 20, &[2; 512]), 0);
    drop(stuck);
    assert_eq!(served.stop().content()[1 << 20], 2);
}

fn extent(offset: u64, len: u64) -> farside_region::ByteExtent {
    farside_region::ByteExtent { offset: farside_region::ByteOffset(offset), len }
}

#[test]
fn a_client_has_a_bounded_number_of_commands_in_the_queue() {
    let memory = memory();
    memory.hold(true);
    let served = serve(memory.clone(), small());
    let mut client = served.client();
    for i in 0..100 {
        client.request(command::WRITE, 0, i * 512, 512, &[i as u8 + 1; 512]);
    }
    // A second client is served all the same.
    let mut other = served.client();
    other.call(command::BLOCK_STATUS, 0, 0, 512, &[]);
    memory.hold(false);
    let mut answered = 0;
    while answered < 100 {
        served.handle.waker().wake();
        assert_eq!(client.reply(|_| (0, 0)).1.error, 0);
        answered += 1;
    }
    assert!(memory.parked_max() <= 4, "{} commands were in the queue", memory.parked_max());
    let content = served.stop().content();
    assert!((0..100).all(|i| content[i * 512] == i as u8 + 1));
}

#[test]
fn a_client_that_does_not_read_its_replies_keeps_its_share_only() {
    let memory = memory();
    let served = serve(memory.clone(), small());
    let mut writer = served.client();
    for megabyte in 0..4u64 {
        assert_eq!(writer.write(megabyte << 20, &pattern(megabyte, 1 << 20)), 0);
    }
    let mut deaf = [served.client(), served.client()];
    for client in &mut deaf {
        for _ in 0..50 {
            client.request(command::READ, 0, 0, 1 << 20, &[]);
        }
    }
    for round in 0..20 {
        assert!(writer.read((round % 4) << 20, 1 << 20) == pattern(round % 4, 1 << 20));
    }
    // Nothing was lost for those who did not listen.
    for client in &mut deaf {
        for _ in 0..2 {
            let (_, reply) = client.reply(|_| (0, 0));
            assert!(reply.joined(0, 1 << 20) == pattern(0, 1 << 20));
        }
    }
    served.stop();
}

/// A client that asks for as much as it may in one reply, and takes nothing of it. Returns when the server has read it all.
fn deaf<Q: BlockQueue + Send + 'static>(served: &Served<Q>, bytes: u32) -> Client {
    let before = count(&served.handle.counters().bytes_read);
    let mut client = Client::connect(&served.path, false);
    for _ in 0..2 {
        client.request(command::READ, 0, 0, bytes, &[]);
    }
    while count(&served.handle.counters().bytes_read) < before + u64::from(bytes) {
        std::thread::yield_now();
    }
    client
}

/// Whoever connects and says nothing must not keep a host from its volume for ever; who has said enough keeps its place.
#[test]
fn clients_stuck_in_their_handshake_give_way_to_a_newcomer() {
    let served = serve(memory(), Limits { handshake_max: std::time::Duration::from_millis(50), ..small() });
    let mut idle = served.client();
    assert_eq!(idle.write(0, &pattern(1, 4096)), 0);
    let places = small().connections_max;
    let mut stuck: Vec<UnixStream> = (1..places).map(|_| UnixStream::connect(&served.path).unwrap()).collect();
    // Half of them say something, and not enough.
    for socket in stuck.iter_mut().step_by(2) {
        socket.write_all(&[0, 0, 0]).unwrap();
    }
    // More than one, and each is served while the others wait.
    let mut newcomers: Vec<Client> = (0..2).map(|_| served.client()).collect();
    for newcomer in &mut newcomers {
        assert_eq!(newcomer.write(4096, &pattern(2, 4096)), 0);
    }
    let hung_up = |socket: &mut UnixStream| std::io::Read::read_to_end(socket, &mut Vec::new()).is_ok();
    assert!(hung_up(&mut stuck[0]) && hung_up(&mut stuck[1]), "the oldest had to go");
    stuck[2].set_nonblocking(true).unwrap();
    assert!(!hung_up(&mut stuck[2]), "nobody waits for its place");
    assert!(idle.read(0, 4096) == pattern(1, 4096), "it had ended its handshake");
    drop(newcomers);
    drop(stuck);
    drop(idle);
    served.stop();
}

/// A volume in memory that counts how often its server has slept, how often it was woken, and how often it could not tell an error.
struct Counted {
    memory: MemQueue,
    sleeps: Arc<AtomicU64>,
    wakes: Arc<AtomicU64>,
    untold: Arc<AtomicU64>,
}

impl Counted {
    fn new(memory: &MemQueue) -> Self {
        Self { memory: memory.clone(), sleeps: Arc::default(), wakes: Arc::default(), untold: Arc::default() }
    }
}

impl BlockQueue for Counted {
    fn info(&self) -> QueueInfo {
        self.memory.info()
    }

    fn submit(&mut self, ring: &mut Ring, request: Request) {
        self.memory.submit(ring, request);
    }

    fn complete(&mut self, ring: &mut Ring, completion: Completion) {
        self.memory.complete(ring, completion);
    }

    fn wake(&mut self, ring: &mut Ring) {
        self.memory.wake(ring);
        self.wakes.fetch_add(1, SeqCst);
    }

    fn answered(&mut self, _ring: &mut Ring) {
        self.sleeps.fetch_add(1, SeqCst);
    }

    fn unanswered(&mut self) {
        self.untold.fetch_add(1, SeqCst);
    }

    fn reap(&mut self) -> Option<Done> {
        self.memory.reap()
    }
}

/// A disk says a failed flush once, and a client whose connection breaks before it had the answer asks again over the next one.
#[test]
fn t14_an_error_that_its_client_was_never_sent_is_said_to_the_volume() {
    let memory = memory();
    let queue = Counted::new(&memory);
    let untold = queue.untold.clone();
    let served = serve(queue, small());
    let gone = || {
        while count(&served.handle.counters().connections) > 0 {
            std::thread::yield_now();
        }
    };
    let mut client = served.client();
    memory.fail(Some(Errno::EIO));
    assert_eq!(client.flush(), error::EIO);
    drop(client);
    gone();
    assert_eq!(count(&untold), 0, "it was told");

    // One leaves before the answer, one takes none of the answers before it.
    let mut leaves = served.client();
    memory.hold(true);
    leaves.request(command::FLUSH, 0, 0, 0, &[]);
    while memory.parked() == 0 {
        std::thread::yield_now();
    }
    drop(leaves);
    memory.hold(false);
    served.handle.waker().wake();
    gone();
    assert_eq!(count(&untold), 1);
    memory.fail(None);
    let mut deaf = Client::connect(&served.path, false);
    deaf.request(command::READ, 0, 0, 1 << 20, &[]);
    while count(&served.handle.counters().bytes_read) == 0 {
        std::thread::yield_now();
    }
    memory.fail(Some(Errno::EIO));
    let before = count(&served.handle.counters().errors);
    deaf.request(command::FLUSH, 0, 0, 0, &[]);
    while count(&served.handle.counters().errors) == before {
        std::thread::yield_now();
    }
    drop(deaf);
    gone();
    assert_eq!(count(&untold), 2);
    served.stop();
}

/// What the kernel took for a client is not told yet: its line may be dead, and its next one is here before anybody knows.
#[test]
fn t14_an_error_that_its_client_did_not_take_is_said_again() {
    let memory = memory();
    let queue = Counted::new(&memory);
    let untold = queue.untold.clone();
    let served = serve(queue, small());
    let (connections, errors) = (&served.handle.counters().connections, &served.handle.counters().errors);
    let fails_a_flush = |client: &mut Client| {
        memory.fail(Some(Errno::EIO));
        let before = count(errors);
        client.request(command::FLUSH, 0, 0, 0, &[]);
        while count(errors) == before {
            std::thread::yield_now();
        }
        memory.fail(None);
        // It was sent, too: there is something to be read.
        let peeked = nix::sys::socket::recv(client.socket.as_raw_fd(), &mut [0], nix::sys::socket::MsgFlags::MSG_PEEK);
        assert_eq!(peeked, Ok(1));
    };
    let mut deaf = served.client();
    fails_a_flush(&mut deaf);
    assert_eq!(count(&untold), 0);
    let mut next = served.client();
    assert_eq!(count(&untold), 1, "it is here again, and has not taken it");
    assert_eq!(next.flush(), 0);
    drop(deaf);
    while count(connections) > 1 {
        std::thread::yield_now();
    }
    assert_eq!(count(&untold), 1, "told once");

    // One leaves without having read it, one has read it by its next command.
    fails_a_flush(&mut next);
    drop(next);
    while count(connections) > 0 {
        std::thread::yield_now();
    }
    assert_eq!(count(&untold), 2);
    let mut reads = served.client();
    memory.fail(Some(Errno::EIO));
    assert_eq!(reads.flush(), error::EIO);
    memory.fail(None);
    assert_eq!(reads.flush(), 0);
    let _other = served.client();
    reads.request(command::READ, 0, 0, 512, &[]);
    drop(reads);
    while count(connections) > 1 {
        std::thread::yield_now();
    }
    assert_eq!(count(&untold), 2, "it has read it");
    served.stop();
}

/// One that was hung up waits for its disk, and another one has been in its handshake for long; somebody waits for a place. The server
/// did not sleep any more: the time of that handshake was over, and it hung up nobody for that.
#[test]
fn a_server_sleeps_while_somebody_who_was_hung_up_waits_for_his_disk() {
    let memory = memory();
    let queue = Counted::new(&memory);
    let (sleeps, wakes) = (queue.sleeps.clone(), queue.wakes.clone());
    let served = serve(queue, Limits { connections_max: 2, handshake_max: std::time::Duration::ZERO, ..small() });
    let wake = || {
        let before = count(&wakes);
        served.handle.waker().wake();
        while count(&wakes) == before {
            std::thread::yield_now();
        }
    };
    let mut leaving = served.client();
    memory.hold(true);
    leaving.request(command::READ, 0, 0, 512, &[]);
    while memory.parked() == 0 {
        std::thread::yield_now();
    }
    let stuck = UnixStream::connect(&served.path).unwrap();
    while count(&served.handle.counters().connections) < 2 {
        std::thread::yield_now();
    }
    // It takes no answer, and there is one: it is hung up.
    leaving.socket.shutdown(Shutdown::Read).unwrap();
    leaving.request(77, 0, 0, 0, &[]);
    while leaving.socket.write_all(&[0]).is_ok() {
        std::thread::yield_now();
    }
    let (newcomer, theirs) = UnixStream::pair().unwrap();
    served.handle.adopt(theirs.into());
    wake(); // it has found him …
    wake(); // … and waits with him
    let before = count(&sleeps);
    for _ in 0..200 {
        wake();
        (0..100).for_each(|_| std::thread::yield_now()); // whoever does not sleep gets the processor
    }
    let slept = count(&sleeps) - before;
    assert!(slept <= 400, "woken 200 times, it looked around {slept} times");
    memory.hold(false);
    wake();
    // The place of the one who left is his.
    std::io::Read::read_exact(&mut &newcomer, &mut [0; 18]).unwrap();
    drop((leaving, stuck, newcomer));
    served.stop();
}

/// All but one of the connections take no replies, and the rest of the memory is theirs: the last one is served, whatever it
/// wants that fits its guarantee, and other reads of their own size wait for memory without holding it up.
#[test]
fn clients_that_take_no_replies_keep_nobody_else_from_being_served() {
    let served = serve(memory(), small());
    let mut writer = Client::connect(&served.path, false);
    writer.socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    assert_eq!(writer.write(0, &pattern(0, 1 << 20)), 0, "longer than what it is guaranteed: piece by piece");
    let hog = deaf(&served, 1 << 20);
    // It waits for what the other one holds.
    let mut waiting = Client::connect(&served.path, false);
    waiting.request(command::READ, 0, 0, 1 << 20, &[]);
    // In the middle of a write that does not come.
    let mut half = Client::connect(&served.path, true);
    let (request, _) = half.encode(command::WRITE, 0, 4 << 20, 1 << 20);
    half.send(&[&request[..], &[1; 100]].concat());
    for round in 0..20 {
        assert_eq!(writer.write(1 << 20, &pattern(round, 1 << 20)), 0);
        for at in 0..16 {
            let found = writer.read((1 << 20) + (at << 16), 64 << 10);
            assert!(found == pattern(round, 1 << 20)[(at << 16) as usize..][..64 << 10]);
        }
    }
    // What the hog gives back goes to who waited for it.
    drop(hog);
    let (_, reply) = waiting.reply(|_| (0, 1 << 20));
    assert!(reply.joined(0, 1 << 20) == pattern(0, 1 << 20));
    drop((waiting, half));
    served.stop();
}

#[test]
fn who_holds_what_another_waits_for_and_takes_nothing_is_hung_up() {
    let served = serve(memory(), Limits { deaf_max: std::time::Duration::from_millis(50), ..small() });
    let mut writer = served.client();
    assert_eq!(writer.write(0, &pattern(3, 1 << 20)), 0);
    let mut hog = deaf(&served, 1 << 20);
    let mut waiting = Client::connect(&served.path, false);
    waiting.socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    assert!(waiting.read(0, 1 << 20) == pattern(3, 1 << 20));
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut hog.socket, &mut rest);
    assert!(rest.len() < 1 << 20, "it was hung up before it had its reply");
    // Nobody waits: then nobody is hung up, however long that takes.
    let mut quiet = deaf(&served, 1 << 20);
    writer.read(0, 64 << 10);
    let (_, reply) = quiet.reply(|_| (0, 1 << 20));
    assert!(reply.joined(0, 1 << 20) == pattern(3, 1 << 20));
    drop((waiting, quiet));
    served.stop();
}

#[test]
fn who_waits_for_pieces_takes_turns() {
    let memory = memory();
    let served = serve(memory.clone(), Limits { jobs_per_connection_max: 64, ..small() });
    let (mut one, mut many) = (served.client(), served.client());
    assert_eq!((one.flush(), many.flush()), (0, 0), "neither comes anew");
    memory.hold(true);
    for i in 0..60 {
        many.request(command::WRITE, 0, i * 512, 512, &[1; 512]);
    }
    while count(&served.handle.counters().waits) < 1 {
        std::thread::yield_now();
    }
    one.request(command::WRITE, 0, 1 << 20, 512, &[2; 512]);
    while count(&served.handle.counters().waits) < 2 {
        std::thread::yield_now();
    }
    memory.hold(false);
    served.handle.waker().wake();
    assert_eq!(one.reply(|_| (0, 0)).1.error, 0);
    for _ in 0..60 {
        assert_eq!(many.reply(|_| (0, 0)).1.error, 0);
    }
    drop((one, many));
    let log = served.stop().log();
    let turn = log.iter().position(|(_, e, _)| e.offset.0 == 1 << 20).unwrap();
    assert!(turn < 60, "it came after all {turn} of the other one's");
}

#[test]
fn more_clients_than_allowed_wait_for_a_place() {
    let served = serve(memory(), Limits { connections_max: 1, ..small() });
    let first = served.client();
    let path = served.path.clone();
    let second = std::thread::spawn(move || Client::connect(&path, true).read(0, 512));
    drop(first);
    assert_eq!(second.join().unwrap(), [0; 512]);
}

#[test]
fn errors_of_the_device_pass_through_as_the_protocol_names_them() {
    let memory = memory();
    let served = serve(memory.clone(), small());
    let mut client = served.client();
    for (errno, expected) in [
        (Errno::EIO, error::EIO),
        (Errno::ENOSPC, error::ENOSPC),
        (Errno::EDQUOT, error::ENOSPC),
        (Errno::EROFS, error::EPERM),
        (Errno::ENOMEM, error::ENOMEM),
        (Errno::EREMOTEIO, error::EIO),
    ] {
        memory.fail(Some(errno));
        assert_eq!(client.write(0, &[1; 512]), expected);
        assert_eq!(client.flush(), expected);
        assert_eq!(client.write(0, &[1; 200 << 10]), expected, "several pieces fail once");
        let reply = client.call(command::READ, 0, 4096, 512, &[]);
        assert_eq!((reply.error, reply.error_at), (expected, Some(4096)));
    }
    memory.fail(None);
    assert_eq!(client.read(0, 512), [0; 512]);
    let mut simple = Client::connect(&served.path, false);
    memory.fail(Some(Errno::EIO));
    assert_eq!(simple.call(command::READ, 0, 0, 512 << 10, &[]).error, error::EIO);
    memory.fail(None);
    assert_eq!(simple.read(0, 512 << 10), vec![0; 512 << 10]);
}

#[test]
fn df_reads_come_in_one_chunk() {
    let served = serve(memory(), small());
    let mut client = served.client();
    assert_eq!(client.write(0, &pattern(1, 1 << 20)), 0);
    let split = client.call(command::READ, 0, 0, 1 << 20, &[]);
    let whole = client.call(command::READ, command_flag::DF, 0, 1 << 20, &[]);
    assert_eq!((split.content.len(), whole.content.len()), (16, 1));
    assert!(split.joined(0, 1 << 20) == whole.joined(0, 1 << 20));
}

#[test]
fn a_stop_finishes_what_was_taken_and_nothing_else() {
    let memory = memory();
    memory.hold(true);
    let served = serve(memory.clone(), small());
    let mut client = served.client();
    let cookie = client.request(command::WRITE, 0, 0, 512, &[5; 512]);
    client.call(command::BLOCK_STATUS, 0, 0, 512, &[]);
    served.handle.stop();
    assert!(!served.handle.drained());
    // The half of a write that came after is never run.
    let (mut bytes, _) = client.encode(command::WRITE, 0, 4096, 128 << 10);
    bytes.extend([6; 512]);
    let _ = std::io::Write::write_all(&mut client.socket, &bytes);
    memory.hold(false);
    served.handle.waker().wake();
    assert_eq!(client.reply(|_| (0, 0)).0, cookie);
    client.assert_hung_up();
    let content = served.stop().content();
    assert_eq!((content[0], content[4096]), (5, 0));
}

#[test]
fn a_read_only_device_serves_reads_only() {
    let (_folder, path) = file();
    let options = OpenOptions { readonly: true, ..OpenOptions::at_once() };
    let served = serve(PlainQueue::new(FileDevice::open(&path, options).unwrap()).unwrap(), Limits::default());
    let mut client = served.client();
    assert_eq!(client.write(0, &[1; 512]), error::EPERM);
    assert_eq!(client.call(command::TRIM, 0, 0, 512, &[]).error, error::EPERM);
    assert_eq!(client.read(0, 512), [0; 512]);
    assert_eq!(client.flush(), 0);
}

#[test]
fn a_refused_write_is_answered_after_its_payload_and_not_before() {
    let served = serve(memory(), small());
    let (mut client, mut other) = (served.client(), served.client());
    let (bytes, cookie) = client.encode(command::WRITE, 0, 1, 100 << 10);
    client.send(&bytes);
    client.send(&[1; 50 << 10]);
    assert_eq!(other.read(0, 512), [0; 512]); // the server has seen the first half by now
    client.socket.set_nonblocking(true).unwrap();
    let early = std::io::Read::read(&mut client.socket, &mut [0; 16]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    client.socket.set_nonblocking(false).unwrap();
    client.send(&[1; 50 << 10]);
    let (replied, reply) = client.reply(|_| (0, 0));
    assert_eq!((replied, reply.error), (cookie, error::EINVAL));
    assert_eq!(client.read(0, 512), [0; 512], "the stream goes on after the payload");
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let limits = Limits { pieces_max: 1, ..small() };
    let served = serve(memory(), limits);
    assert!(matches!(served.thread.join().unwrap(), Err(ServeError::Limits { .. })));
}

#[test]
fn sockets_that_are_handed_over_are_served_like_those_that_come() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let (server, handle) = Server::new(None, "disk", "", limits, Waker::new().unwrap());
    let hand_over = || {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        handle.adopt(theirs.into());
        ours
    };
    let first = hand_over(); // before it runs
    let thread = std::thread::spawn(move || server.run(memory()));
    let mut first = farside_nbd::client::Client::over(first, "").unwrap();
    first.write(4096, &[7; 512], 0).unwrap();
    let second = hand_over(); // there is no room for it yet
    let mut read = [0; 512];
    first.read(4096, &mut read).unwrap();
    assert_eq!(read, [7; 512]);
    first.disconnect().unwrap();
    let mut second = farside_nbd::client::Client::over(second, "disk").unwrap();
    second.read(4096, &mut read).unwrap();
    assert_eq!((read, second.size()), ([7; 512], SIZE));
    let third = hand_over(); // nobody will take it
    handle.stop();
    thread.join().unwrap().unwrap();
    let refused = farside_nbd::client::Client::over(third, "").expect_err("the server has ended");
    assert_eq!(refused.kind(), std::io::ErrorKind::UnexpectedEof);
}
