//! A daemon in this process, with what the kernel would have to do told to it.

mod flushes;
mod gone;
mod moved;
mod paused;
mod said;
mod time;

use farside_control::Reloaded;
use farside_control::failback::{FailbackRequest, FailbackStep};
use farside_control::source::{IfAbsent, VolumeAdd, VolumeState, VolumeStatus};

use super::*;
use crate::boot::tests::SlowEnd;
use crate::config::VolumeConfig;
use crate::group::{Farewell, Inbox};
use crate::mounted::Mounted;
use crate::state_dir::{Mark, StateDirError};
use crate::tap::TapConfig;
use crate::volume::Served;

const PATIENCE: Duration = Duration::from_secs(60);

async fn lost(noticed: &mut mpsc::UnboundedReceiver<Noticed>) -> Noticed {
    tokio::time::timeout(PATIENCE, noticed.recv()).await.expect("it is said").expect("the daemon lives")
}

/// A daemon in a folder, with a volume `data` over a file; other files are there for more.
struct Running {
    at: PathBuf,
    daemon: Arc<Daemon>,
    noticed: mpsc::UnboundedReceiver<Noticed>,
    data: Name,
    id: VolumeId,
    inbox: Inbox,
    _dir: tempfile::TempDir,
}

/// A daemon in a folder that serves nothing yet, with what `[source]` says.
fn not_begun(
    at: &Path,
    said: &str,
    backings: impl FnOnce(&Config) -> Backings,
) -> (Arc<Daemon>, mpsc::UnboundedReceiver<Noticed>) {
    // Those that an earlier one left are as it left them.
    for volume in ["data", "late", "other"].iter().filter(|volume| !at.join(volume).exists()) {
        std::fs::write(at.join(volume), vec![0; 8 << 20]).expect("written");
    }
    std::fs::create_dir_all(at.join("run")).expect("made");
    let path = at.join("farsided.toml");
    let text = format!(
        "[source]\n{said}\nstate_dir='{at}/state'\napi_socket='{at}/run/api.sock'\n\
         [[volume]]\nname='data'\nbacking='{at}/data'\ntap='nbd:unix:{at}/tap'\n",
        at = at.display()
    );
    std::fs::write(&path, text).expect("written");
    let config = Config::load(&path).expect("valid");
    // A process that another test is about to start holds what was locked here until it runs.
    let began = std::time::Instant::now();
    let state = loop {
        match StateDir::open(&config.source.state_dir) {
            Err(StateDirError::InUse { .. }) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            state => break Arc::new(state.expect("ours")),
        }
    };
    let (notices, noticed) = mpsc::unbounded_channel();
    let backings = Arc::new(backings(&config));
    let mut daemon = Daemon::new(config, state, tokio::runtime::Handle::current(), notices).expect("a daemon");
    Arc::get_mut(&mut daemon).expect("nobody else's yet").around.backings = backings;
    (daemon, noticed)
}

/// Stops a daemon; whoever has the folder can start another.
async fn end(daemon: Arc<Daemon>) {
    daemon.stop_groups().await;
    let state = daemon.state.clone();
    drop(daemon);
    while Arc::strong_count(&state) > 1 {
        tokio::task::yield_now().await;
    }
}

impl Running {
    async fn new() -> Self {
        Self::of(Backings::of).await
    }

    /// On a host with these disks.
    async fn of(backings: impl FnOnce(&Config) -> Backings) -> Self {
        let running = Self::begin(tempfile::tempdir_in(".").expect("temp dir"), "name='h1'", backings);
        running.await.expect("data is served")
    }

    /// With what `[source]` says; or why `data` is not served, and the folder.
    async fn begin(
        dir: tempfile::TempDir,
        said: &str,
        backings: impl FnOnce(&Config) -> Backings,
    ) -> Result<Self, (tempfile::TempDir, String)> {
        let at = dir.path().canonicalize().expect("there");
        let (daemon, noticed) = not_begun(&at, said, backings);
        daemon.start_all().join_all().await;
        let Ok((data, group, id)) = daemon.find("data") else {
            let why = format!("{:?}", daemon.status().await);
            end(daemon).await;
            return Err((dir, why));
        };
        let inbox = locked(&daemon.groups)[&group].inbox.clone();
        Ok(Self { at, daemon, noticed, data, id, inbox, _dir: dir })
    }

    /// Stops it, and leaves the folder.
    async fn end(self) -> tempfile::TempDir {
        let Self { daemon, _dir, .. } = self;
        end(daemon).await;
        _dir
    }

    fn folder(&self, volume: &str) -> PathBuf {
        let group = "default".parse().expect("a name");
        self.daemon.state.volume_dir(&group, &volume.parse().expect("a name")).expect("made").0
    }

    /// What a loss of `data` is kept by: neither the mark nor the note can be put while these are in the way.
    fn block(&self) -> [PathBuf; 2] {
        let places = [self.folder("data").join("tracking-lost"), self.at.join(format!("run/tracking-lost-{}", self.id))];
        places.iter().for_each(|path| std::fs::create_dir(path).expect("made"));
        places
    }

    /// Somebody has ended the device of `data`.
    fn lose_tap(&self) {
        self.inbox.send(Note::TapLost(self.id, "it was ended".into()));
    }

    /// Its tap is lost, and it is closed to be opened again.
    async fn serve_again_until_closed(&self) -> tokio::task::JoinHandle<()> {
        self.lose_tap();
        let (daemon, data) = (self.daemon.clone(), self.data.clone());
        while daemon.ask(&data, Ask::TapLost).await.is_err() {
            tokio::task::yield_now().await;
        }
        let serving = tokio::spawn(async move { daemon.serve_again(&data).await });
        while self.daemon.volumes.served() > 0 {
            tokio::task::yield_now().await;
        }
        serving
    }

    /// A volume that is not configured.
    fn late(&self) -> VolumeConfig {
        let data = locked(&self.daemon.config).volumes[&self.data].clone();
        let tap = TapConfig::Nbd { socket: self.at.join("late-tap") };
        VolumeConfig { name: "late".parse().expect("a name"), backing: self.at.join("late"), tap, ..data }
    }

    /// No file has `data` any more. Gives the text as it was.
    fn take_data_out(&self) -> String {
        let path = self.at.join("farsided.toml");
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, text.split("[[volume]]").next().expect("there")).expect("written");
        text
    }

    /// A volume that no file has is taken out of service, as soon as nobody is at it.
    async fn remove(daemon: &Arc<Daemon>, name: &str) {
        while let Err(error) = daemon.remove_volume(name).await {
            assert_eq!(error.code, ErrorCode::Busy, "{error:?}");
            tokio::task::yield_now().await;
        }
    }

    fn add(&self, name: &str) -> VolumeAdd {
        let tap = Some(format!("nbd:unix:{}/{name}-tap", self.at.display()));
        VolumeAdd {
            name: name.to_owned(),
            group: None,
            backing: self.at.join(name),
            insert: false,
            tap,
            if_absent: IfAbsent::default(),
        }
    }
}

/// The device of a volume was ended by somebody else while the volume was being opened: what says so came before the volume was its
/// group's, and what was said then came before the supervisor knew that it is served. It stayed without a tap until a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_tap_that_was_lost_is_said_until_somebody_serves_it_again() {
    let mut running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    running.lose_tap();
    for _ in 0..2 {
        // Whoever hears it the first time may not be able to do anything about it.
        assert_eq!(lost(&mut running.noticed).await, Noticed::TapLost(data.clone()));
    }
    daemon.serve_again(&data).await;
    assert!(daemon.volumes.served() == 1 && daemon.ask(&data, Ask::TapLost).await.is_err(), "it is served again");
    while running.noticed.try_recv().is_ok() {}
    // What was said before that may be heard now.
    daemon.serve_again(&data).await;
    assert!(daemon.volumes.served() == 1 && !daemon.volumes.is_leaving(&data), "it is served on");

    let late = running.late();
    let folder = running.folder("late");
    let shim = farside_shim::Group::new(&farside_shim::Limits::DEFAULT, farside_region::Geometry::GRANULE_BYTES);
    let opened = Served::open(late.clone(), folder, &shim, &daemon.around, &running.inbox).expect("opened");
    opened.0.tap_lost.set("it was ended".into()).expect("the first");
    let (reply, answer) = oneshot::channel();
    running.inbox.send(Note::Opened(Box::new(opened), reply));
    answer.await.expect("answered").expect("added");
    assert_eq!(lost(&mut running.noticed).await, Noticed::TapLost(late.name));
    assert_ne!(daemon.stop_groups().await, Stopped::LossUnkept);
}

/// That the disk of a volume was not tracked could not be kept for a moment: the volume was closed, and not opened again until a
/// restart. Or it was made larger meanwhile, and nobody remembered.
#[tokio::test(flavor = "multi_thread")]
async fn a_tap_that_was_lost_is_remembered_before_its_volume_is_closed() {
    let mut running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    running.lose_tap();
    lost(&mut running.noticed).await;
    // It grows: not before it is served as it should be.
    let file = std::fs::File::options().write(true).open(running.at.join("data")).expect("there");
    file.set_len(16 << 20).expect("grown");
    let refused = daemon.ask(&data, Ask::Growth).await.expect_err("not now").to_string();
    assert!(refused.contains("ended by somebody else"), "{refused}");

    let blocked = running.block();
    // Nobody waits for what may never be.
    tokio::time::timeout(PATIENCE, daemon.serve_again(&data)).await.expect("it is refused");
    assert!(daemon.volumes.served() == 1 && !daemon.volumes.is_leaving(&data), "it stays as it was");
    daemon.ask(&data, Ask::TapLost).await.expect("it is not closed, and nobody has forgotten anything");
    let said = daemon.status().await.groups.remove(0).volumes.remove(0).reasons;
    let said = said.iter().find(|reason| reason.code == Code::NotServed.word()).expect("why, and what to do");
    assert!(said.message.contains(&blocked[0].display().to_string()), "{said:?}");
    assert!(said.what_to_do.contains("make room on the disk that holds"), "{said:?}");
    blocked.iter().for_each(|path| std::fs::remove_dir(path).expect("empty"));
    // Until it is there nobody opens the volume again and withdraws the mark.
    let (backing, aside) = (running.at.join("data"), running.at.join("aside"));
    std::fs::rename(&backing, &aside).expect("renamed");
    let (again, name) = (daemon.clone(), data.clone());
    let serving = tokio::spawn(async move { again.serve_again(&name).await });
    while daemon.volumes.served() > 0 {
        tokio::task::yield_now().await;
    }
    let folder = running.folder("data");
    assert!(Mark::TrackingLost.is_set(&folder).expect("asked"), "closed, and nothing says that its disk was not tracked");
    std::fs::rename(&aside, &backing).expect("renamed");
    serving.await.expect("it ends");
    assert!(daemon.volumes.served() == 1 && !daemon.volumes.is_leaving(&data), "it is served again");

    // A stop remembers it, too.
    Mark::TrackingLost.put(&folder, false).expect("as if everything had been compared");
    running.lose_tap();
    assert_eq!(daemon.stop_groups().await, Stopped::Unclean);
    assert!(Mark::TrackingLost.reason(&folder).expect("marked").contains("ended by somebody else"));
}

/// What was lost while a volume was being taken out relied on the mark that was there for that. The removal was refused, and the mark withdrawn: after
/// a crash the map was believed.
#[tokio::test(flavor = "multi_thread")]
async fn l2_what_is_lost_while_a_removal_is_refused_is_remembered() {
    for is_lost in [true, false] {
        let running = Running::new().await;
        let (daemon, folder, path) = (running.daemon.clone(), running.folder("data"), running.at.join("farsided.toml"));
        let text = std::fs::read(&path).expect("read");
        // Whoever reads the configuration waits for it.
        let gate = running.at.join("gate");
        let hold_up = || {
            nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
            std::fs::rename(&gate, &path).expect("put in its place");
        };
        hold_up();
        let removes = daemon.clone();
        let removing = tokio::spawn(async move { removes.remove_volume("data").await });
        // It is looked whether a person wrote it there, before anything is done, and once more when it is marked.
        for is_marked in [false, true] {
            let at = path.clone();
            let opened = tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(at));
            let mut reader = opened.await.expect("it ends").expect("somebody reads");
            assert_eq!(Mark::Leaving.is_set(&folder).expect("asked"), is_marked);
            match is_marked {
                true => std::fs::rename(running.at.join("as it was"), &path).expect("put back"),
                false => {
                    std::fs::write(running.at.join("as it was"), &text).expect("written");
                    hold_up();
                }
            }
            if is_marked && is_lost {
                Mark::TrackingLost.put(&folder, true).expect("its map cannot be written any more");
            }
            std::io::Write::write_all(&mut reader, &text).expect("read");
        }
        let refused = removing.await.expect("it ends").expect_err("a person wrote it there");
        assert!(refused.message.contains("hand-written"), "{refused:?}");
        assert!(!Mark::Leaving.is_set(&folder).expect("asked"));
        assert_eq!(Mark::TrackingLost.is_set(&folder).expect("asked"), is_lost);
        let stopped = if is_lost { Stopped::Unclean } else { Stopped::Clean };
        assert_eq!(daemon.stop_groups().await, stopped);
    }
}

/// Whoever was taking a volume out was killed in the middle of that.
#[tokio::test]
async fn l2_what_was_being_taken_out_at_a_crash_is_compared_in_full() {
    let running = Running::new().await;
    let folder = running.folder("data");
    let dir = running.end().await;
    assert_eq!(IntentFile::says_clean(&folder).expect("read"), Some(true));
    Mark::Leaving.put(&folder, true).expect("marked");
    let again = Running::begin(dir, "name='h1'", Backings::of).await.expect("data is served");
    assert!(!Mark::Leaving.is_set(&folder).expect("asked"), "it would say so of what comes next, too");
    let said = again.daemon.status().await.groups.remove(0).volumes.remove(0).reasons;
    let is_compared = |reason: &Reason| reason.message.contains("everything is compared, since it was being taken out");
    assert!(said.iter().any(is_compared), "{said:?}");
    again.daemon.stop_groups().await;
}

/// What was lost while a volume was being closed could not be kept, and a stop knew nothing of that volume.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_while_a_volume_is_closed_is_kept_or_known_to_a_stop() {
    for is_mended in [true, false] {
        let running = Running::new().await;
        let (daemon, folder, id) = (running.daemon.clone(), running.folder("data"), running.id);
        // Its group is busy until it has heard everything.
        let gate = folder.join("paused");
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let (paused, is_paused) = oneshot::channel();
        running.inbox.send(Note::Ask(Ask::Pause(id, true, paused)));
        let (reply, mut left) = oneshot::channel();
        running.inbox.send(Note::Ask(Ask::Leave(id, Farewell::OpenedAgain, reply)));
        running.lose_tap();
        let blocked = running.block();
        drop(tokio::task::spawn_blocking(|| std::fs::File::open(gate)).await.expect("it ends").expect("opened"));
        is_paused.await.expect("answered").expect_err("that is no file");
        while !daemon.status().await.groups.is_empty() {
            tokio::task::yield_now().await;
        }
        left.try_recv().expect_err("it is not closed yet");
        // "Wait" would be no help: it waits for a disk.
        let said = daemon.status().await.reasons.into_iter().find(|reason| reason.code == Code::NotServed.word());
        let said = said.expect("why, and what to do");
        assert!(said.message.contains(&blocked[0].display().to_string()), "{said:?}");
        assert!(said.what_to_do.contains(&daemon.state.path().display().to_string()), "{said:?}");
        if is_mended {
            blocked.iter().for_each(|path| std::fs::remove_dir(path).expect("empty"));
            left.await.expect("answered").expect("it leaves").expect("in order");
            assert!(daemon.status().await.reasons.iter().all(|reason| reason.code != said.code), "that is mended");
            assert!(Mark::TrackingLost.reason(&folder).expect("marked").contains("ended by somebody else"));
        } else {
            assert_eq!(daemon.stop_groups().await, Stopped::LossUnkept);
        }
    }
}

/// A volume that was being closed to be opened again when a stop came, or was closed by then, was in no group: the stop was called
/// clean, and the next start compared what was hot.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_for_what_it_finds_closed() {
    for (farewell, stopped) in
        [(Farewell::OpenedAgain, Stopped::Unclean), (Farewell::OpenedLarger, Stopped::Clean), (Farewell::Removed, Stopped::Clean)]
    {
        for is_over in [true, false] {
            let running = Running::new().await;
            let folder = running.folder("data");
            let (reply, mut left) = oneshot::channel();
            running.inbox.send(Note::Ask(Ask::Leave(running.id, farewell, reply)));
            let end = if is_over { Some((&mut left).await) } else { None };
            assert_eq!(running.daemon.stop_groups().await, stopped, "{farewell:?}, over: {is_over}");
            let end = end.unwrap_or_else(|| Ok(left.try_recv().expect("the stop has waited for it")));
            end.expect("answered").expect("it leaves").expect("in order");
            let is_removed = farewell == Farewell::Removed;
            assert!(if is_removed { !folder.exists() } else { is_clean(&folder) == (stopped == Stopped::Clean) }, "{farewell:?}");
        }
    }
}

/// A volume that was being opened when a stop came: its map said `attached` by then, and the stop was called clean.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_for_what_is_being_opened() {
    let shim = || farside_shim::Group::new(&farside_shim::Limits::DEFAULT, farside_region::Geometry::GRANULE_BYTES);
    let running = Running::new().await;
    let (daemon, folder) = (running.daemon.clone(), running.folder("late"));
    let (late, _) = Served::open(running.late(), folder.clone(), &shim(), &daemon.around, &running.inbox).expect("opened");
    assert!(!is_clean(&folder));
    assert_eq!(daemon.stop_groups().await, Stopped::Unclean);
    late.close();

    // What comes too late to be heard of takes nothing from a map.
    let running = Running::new().await;
    let (daemon, folder) = (running.daemon.clone(), running.folder("data"));
    assert_eq!(daemon.stop_groups().await, Stopped::Clean);
    let data = locked(&daemon.config).volumes[&running.data].clone();
    let file = std::fs::File::options().write(true).open(running.at.join("data")).expect("there");
    for bytes in [8 << 20, 16 << 20] {
        file.set_len(bytes).expect("room");
        let opened = Served::open(data.clone(), folder.clone(), &shim(), &daemon.around, &running.inbox);
        assert!(opened.err().expect("refused").to_string().contains("farsided is stopping"));
        assert!(is_clean(&folder), "with {bytes} bytes");
    }
}

/// Whether the map in a volume's folder says so.
fn is_clean(folder: &Path) -> bool {
    IntentFile::says_clean(folder).expect("ours").expect("there")
}

/// A volume that a crash had left and whose disk was not there since: the stop was called clean.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_for_what_was_never_opened() {
    for is_left_by_a_crash in [true, false] {
        let running = Running::new().await;
        let daemon = running.daemon.clone();
        let folder = running.folder("late");
        if is_left_by_a_crash {
            let crashed = Running::new().await;
            std::fs::copy(crashed.folder("data").join("intent"), folder.join("intent")).expect("copied");
        }
        let late = running.late();
        locked(&daemon.config).volumes.insert(late.name.clone(), late);
        let stopped = if is_left_by_a_crash { Stopped::Unclean } else { Stopped::Clean };
        assert_eq!(daemon.stop_groups().await, stopped);
        assert!(is_clean(&running.folder("data")));
    }
    // Whatever a map is cut off to, it is none that says `clean`.
    let dir = tempfile::tempdir().expect("temp dir");
    assert_eq!(IntentFile::says_clean(dir.path()).expect("looked"), None);
    std::fs::write(dir.path().join("intent"), [0; 100]).expect("written");
    assert_eq!(IntentFile::says_clean(dir.path()).expect("looked"), Some(false));
}

/// A stop forgot a loss that could not be kept before its volume was closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_says_what_could_not_be_kept() {
    for has_note in [false, true] {
        let mut running = Running::new().await;
        let daemon = running.daemon.clone();
        running.lose_tap();
        lost(&mut running.noticed).await;
        let [_, note] = running.block();
        if has_note {
            // It is gone with the power, which goes next.
            std::fs::remove_dir(note).expect("empty");
        }
        daemon.serve_again(&running.data).await; // it is refused
        assert_eq!(daemon.volumes.served(), 1, "it stays");
        assert_eq!(daemon.stop_groups().await, Stopped::LossUnkept);
    }
}

/// Whoever had no trouble with the gateway yet was called connected, for ever where there is no volume.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_heard_nothing_of_its_gateway_is_not_connected() {
    let dir = tempfile::tempdir_in(".").expect("temp dir");
    let at = dir.path().canonicalize().expect("there");
    let (daemon, _noticed) = not_begun(&at, "name='h1'", Backings::of);
    assert_eq!(daemon.connection([].iter()), Connection::NotPaired);
    let (receiver, fingerprint) = ("gw".parse().expect("a name"), farside_transport::Fingerprint([7; 32]));
    daemon.pin.send_replace(Some(Pin::new(receiver, fingerprint, Vec::new())));
    let mut group = GroupStatus::default();
    let connecting = Connection::Connecting { receiver: "gw".to_owned() };
    assert_eq!([daemon.connection([].iter()), daemon.connection([&group].into_iter())], [connecting.clone(), connecting]);
    group.link.connected = true;
    assert_eq!(daemon.connection([&group].into_iter()), Connection::Connected { receiver: "gw".to_owned() });
    end(daemon).await;
}

/// Between its group, which had let it go, and the supervisor, which did not know that yet, a volume was in no status.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_closed_to_be_opened_again_is_told_of_all_the_time() {
    let running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    assert!(daemon.volumes.begin_to_leave(&data));
    let leave = |id, reply| Ask::Leave(id, Farewell::OpenedAgain, reply);
    daemon.ask(&data, leave).await.expect("it leaves").expect("in order");
    let status = daemon.status().await;
    assert!(status.groups.is_empty());
    let reason = status.reasons.iter().find(|reason| reason.code == Code::Starting.word()).expect("it is told of");
    assert!(reason.message.contains("volume data is being closed"), "{reason:?}");
    assert!(daemon.untold(&status.groups, &[]).iter().map(|volume| volume.name.as_str()).eq(["data"]));
    daemon.volumes.left(&data);
    let volume = locked(&daemon.config).volumes[&data].clone();
    daemon.open_until_served(volume).await;
    let status = daemon.status().await;
    assert!(status.groups.len() == 1 && daemon.untold(&status.groups, &[]).is_empty());
    daemon.stop_groups().await;
}

/// † A file that was not there for a moment had taken a volume out of service, with its map.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_nothing_out_of_service() {
    let running = Running::new().await;
    let (daemon, folder) = (running.daemon.clone(), running.folder("data"));
    let main = running.at.join("farsided.toml");
    let plain = std::fs::read_to_string(&main).expect("read");
    std::fs::write(&main, format!("{plain}[[group]]\nname='default'\nkeep=77\nrate='20Mbit'\n")).expect("written");
    daemon.reload().await.expect("valid");
    let group = || locked(&daemon.config).group(&"default".parse().expect("a name"));
    let before = group();
    assert_eq!(before.keep, 77);
    let text = running.take_data_out();
    let reloaded = daemon.reload().await.expect("valid");
    assert_eq!((reloaded.kept_volumes, reloaded.failed), (vec!["data".to_owned()], vec![]));
    assert!(reloaded.changed.is_empty() && group() == before, "what was said of its group is kept, too: {:?}", reloaded.changed);
    assert!(daemon.volumes.served() == 1 && folder.exists());
    assert!(daemon.status().await.reasons.iter().any(|reason| reason.code == Code::ConfigurationStale.word()));
    // Another one over the same disk is refused, and nothing of it is taken over.
    std::fs::write(running.at.join("farsided.toml"), text.replace("name='data'", "name='renamed'")).expect("written");
    let refused = daemon.reload().await.expect_err("both cannot be served");
    assert!(refused.message.contains("volume renamed has the backing or the tap of volume data"), "{refused:?}");
    assert!(!locked(&daemon.config).volumes.contains_key(&"renamed".parse().expect("a name")));
    std::fs::write(running.at.join("farsided.toml"), &text).expect("written");
    assert_eq!(daemon.reload().await.expect("valid"), Reloaded::default());
    assert!(daemon.status().await.reasons.iter().all(|reason| reason.code != Code::ConfigurationStale.word()));
    let by_hand = daemon.remove_volume("data").await.expect_err("a file has it");
    assert!(by_hand.message.contains("take it out there"), "{by_hand:?}");
    running.take_data_out();
    daemon.reload().await.expect("valid");
    Running::remove(&daemon, "data").await;
    assert!(daemon.volumes.served() == 0 && !folder.exists());
    // It comes again under its name.
    daemon.add_volume(&running.add("data")).await.expect("added");
    assert!(daemon.status().await.reasons.iter().all(|reason| reason.code != Code::ConfigurationStale.word()));
    daemon.stop_groups().await;
}

/// A volume was taken out of the configuration while it was being opened again: nobody did that any more, and nobody ended its
/// device, whose users waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_taken_out_while_it_is_opened_again_ends() {
    let running = Running::new().await;
    let (daemon, folder) = (running.daemon.clone(), running.folder("data"));
    let backing = running.at.join("data");
    std::fs::rename(&backing, running.at.join("aside")).expect("renamed");
    let serving = running.serve_again_until_closed().await;
    running.take_data_out();
    assert!(folder.exists());
    Running::remove(&daemon, "data").await;
    tokio::time::timeout(PATIENCE, serving).await.expect("it ends").expect("in order");
    assert!(!folder.exists(), "what it had is there still");
    assert!(daemon.volumes.opening().is_empty() && daemon.untold(&[], &[]).is_empty());
    daemon.stop_groups().await;
}

/// The device of a volume could carry no tap for a while. The volume was closed then, or had never been open, and was taken out of the
/// configuration: its folder stayed, and whatever else it had.
#[tokio::test(flavor = "multi_thread")]
async fn an_inserted_volume_that_is_taken_out_while_its_tap_is_not_there_ends() {
    let running = Running::new().await;
    let (daemon, data, folder) = (running.daemon.clone(), running.data.clone(), running.folder("data"));
    locked(&daemon.config).volumes.get_mut(&data).expect("configured").insert = true;
    assert!(daemon.volumes.begin_to_leave(&data));
    let leave = |id, reply| Ask::Leave(id, Farewell::OpenedAgain, reply);
    daemon.ask(&data, leave).await.expect("it leaves").expect("in order");
    daemon.volumes.left(&data);
    let mut inserting = Box::pin(daemon.insert_again(&data));
    let waits = std::future::poll_fn(|context| std::task::Poll::Ready(inserting.as_mut().poll(context).is_pending())).await;
    assert!(waits && folder.exists(), "a file carries no tap");
    running.take_data_out();
    Running::remove(&daemon, "data").await;
    tokio::time::timeout(PATIENCE, inserting).await.expect("it ends");
    assert!(!folder.exists(), "what it had is there still");
    assert!(daemon.volumes.opening().is_empty() && daemon.untold(&[], &[]).is_empty());
    daemon.stop_groups().await;
}

/// While the taps of a group were taken out from under devices that were given away, whoever closes and opens volumes by himself could put one back,
/// or have it end under a device: nobody had claimed the volumes yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_claimed_to_be_kept_is_closed_opened_and_removed_by_nobody_else() {
    let running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    let config = locked(&daemon.config).volumes[&data].clone();
    let claimed = daemon.claim_unused(&config).await.expect("nobody uses it");
    running.lose_tap();
    while daemon.ask(&data, Ask::TapLost).await.is_err() {
        tokio::task::yield_now().await;
    }
    daemon.serve_again(&data).await;
    daemon.ask(&data, Ask::TapLost).await.expect("it was closed and opened");
    assert_eq!(daemon.remove_volume("data").await.expect_err("it is claimed").code, ErrorCode::Busy);
    assert!(daemon.claim_unused(&config).await.is_err(), "it is claimed");
    assert!(daemon.volumes.is_served(&data) && daemon.volumes.is_leaving(&data));
    // Given up, it is what it was.
    drop(claimed);
    assert!(!daemon.volumes.is_leaving(&data));
    daemon.serve_again(&data).await;
    assert!(daemon.volumes.is_served(&data) && daemon.ask(&data, Ask::TapLost).await.is_err(), "it is served again");
    // Who has claimed it ends it.
    let claimed = daemon.claim_unused(&config).await.expect("nobody uses it");
    let meta = running.folder("data").join("kept-by-nobody");
    std::fs::write(&meta, "").expect("written");
    daemon.leave_for_failback(&data, claimed).await;
    assert!(!meta.exists(), "it was not let go");
    daemon.stop_groups().await;
}

/// A volume that was closed to be opened again as a failback came to hold its disk was tried for as long as that lasted, which may be weeks.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_failback_holds_is_tried_by_nobody_else() {
    let running = Running::new().await;
    let (daemon, data) = (running.daemon.clone(), running.data.clone());
    let over = crate::failback::hold(&daemon.state_path(), ("default", "data"), &running.at.join("data"));
    daemon.take_up_failbacks().expect("read");
    running.lose_tap();
    while daemon.ask(&data, Ask::TapLost).await.is_err() {
        tokio::task::yield_now().await;
    }
    tokio::time::timeout(PATIENCE, daemon.serve_again(&data)).await.expect("it is left to who holds it");
    assert!(!daemon.volumes.is_served(&data) && !daemon.volumes.is_tried(&data));
    let said = daemon.untold(&[], &[]).remove(0).reasons.remove(0);
    assert_eq!(said.code, Code::FailingBack.word(), "{said:?}");
    over();
    daemon.stop_groups().await;
}

/// One note of a failback that could not be read kept every volume of its host from being served.
#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_cannot_be_read_keeps_its_own_group_out_and_no_other() {
    for is_put_back in [true, false] {
        let dir = tempfile::tempdir_in(".").expect("temp dir");
        let at = dir.path().canonicalize().expect("there");
        let late: Name = "late".parse().expect("a name");
        std::fs::create_dir_all(at.join("state/failback")).expect("made");
        std::fs::create_dir(at.join("farsided.d")).expect("made");
        // Of another group, and by another name the same disk.
        std::os::unix::fs::symlink(at.join("late"), at.join("same")).expect("linked");
        for (name, group) in [("late", "db"), ("same", "x")] {
            let at = at.display();
            let text =
                format!("[[volume]]\nname='{name}'\ngroup='{group}'\nbacking='{at}/{name}'\ntap='nbd:unix:{at}/{name}-tap'\n");
            std::fs::write(dir.path().join(format!("farsided.d/{name}.toml")), text).expect("written");
        }
        let note = at.join("state/failback/db.json");
        std::fs::write(&note, "{").expect("written");
        let (daemon, _noticed) = not_begun(&at, "name='h1'", Backings::of);
        let (api, opened) = daemon.begin().await.expect("it begins");
        tokio::time::timeout(PATIENCE, opened.join_all()).await.expect("all was tried");
        assert!(daemon.volumes.is_served(&"data".parse().expect("a name")), "it is of another group, on another disk");
        let said = daemon.untold(&daemon.status().await.groups, &[]);
        assert_eq!(said.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["late", "same"]);
        for volume in said {
            let reason = &volume.reasons[0];
            assert!(reason.message.contains("db.json") && reason.what_to_do.contains("tried again by itself"), "{reason:?}");
        }
        let abort = FailbackRequest { group: "db".to_owned(), step: FailbackStep::Abort, ..FailbackRequest::default() };
        let refused = daemon.failback(&abort).await.expect_err("nobody knows what was begun");
        assert!(refused.message.contains("db.json"), "{refused:?}");
        std::fs::remove_file(&note).expect("removed");
        let over = is_put_back.then(|| crate::failback::hold(&daemon.state_path(), ("db", "late"), &at.join("late")));
        std::fs::remove_file(at.join("same")).expect("removed");
        let failed = daemon.reload().await.expect("valid").failed;
        let of_failback = |volume: &VolumeStatus| volume.name == "late" && volume.reasons[0].code == Code::FailingBack.word();
        // It may be just then that it is tried by itself: whoever tries it first says what came of it.
        let is_through = async {
            while if is_put_back { !daemon.untold(&[], &[]).iter().any(of_failback) } else { !daemon.volumes.is_served(&late) } {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_through).await.unwrap_or_else(|_| panic!("held as it was: {is_put_back}: {failed:?}"));
        assert_eq!(daemon.volumes.is_served(&late), !is_put_back, "{failed:?}");
        assert_eq!(daemon.show_failbacks().len(), usize::from(is_put_back));
        if let Some(over) = over {
            over();
        }
        api.abort();
        daemon.stop_groups().await;
    }
}

/// Put back while what was left of it was ended, it was opened by nobody: who put it back was told that somebody was at it.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_put_back_while_it_ends_is_opened_again() {
    let running = Running::of(Backings::of_slow_host).await;
    let daemon = running.daemon.clone();
    let hidden =
        VolumeConfig { name: running.data.clone(), backing: "/dev/nothing".into(), tap: TapConfig::Ublk, ..running.late() };
    daemon.around.backings.take(&hidden, &daemon.around.source).expect("taken");
    let (backing, aside) = (running.at.join("data"), running.at.join("aside"));
    let not_yet = SlowEnd::of(&running.at);
    std::fs::rename(&backing, &aside).expect("renamed");
    let serving = running.serve_again_until_closed().await;
    let text = running.take_data_out();
    let removes = daemon.clone();
    let removing = tokio::spawn(async move { Running::remove(&removes, "data").await });
    while !not_yet.is_met() {
        tokio::task::yield_now().await;
    }
    std::fs::rename(&aside, &backing).expect("renamed");
    std::fs::write(running.at.join("farsided.toml"), text).expect("written");
    drop(not_yet);
    removing.await.expect("it ends");
    daemon.reload().await.expect("valid");
    tokio::time::timeout(PATIENCE, serving).await.expect("it ends").expect("in order");
    assert_eq!(daemon.volumes.served(), 1, "nobody serves it");
    daemon.stop_groups().await;
}

/// A volume came to be added while its removal waited for another change: it was let go, and written down after that.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_to_be_added_meanwhile_is_not_removed() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let one = daemon.changes.lock().await;
    let mut removing = std::pin::pin!(daemon.remove_volume("late"));
    let waits = std::future::poll_fn(|context| std::task::Poll::Ready(removing.as_mut().poll(context).is_pending())).await;
    assert!(waits, "somebody changes something");
    let late = running.late();
    locked(&daemon.volumes.adding).insert(late.name.clone(), late);
    drop(one);
    assert_eq!(removing.await.expect_err("it is being added").code, ErrorCode::Busy);
    daemon.stop_groups().await;
}

/// What was to be added stayed in the configuration on disk, where it could not be taken out of it, and nobody said so.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_taken_out_of_the_configuration_is_not_forgotten() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let late = VolumeConfig { insert: true, ..running.late() };
    let config = locked(&daemon.config).clone();
    let path = config.write_volume(&late).expect("written");
    std::fs::remove_file(&path).and_then(|()| std::fs::create_dir(&path)).expect("nobody removes that as a file");
    let error = daemon.give_up_adding(&late, &anyhow::anyhow!("it is on fire")).await;
    assert!(error.message.contains("stays configured") && error.message.contains("on fire"), "{error:?}");
    assert!(locked(&daemon.config).volumes.contains_key(&late.name));
    assert!(daemon.status().await.reasons.iter().any(|reason| reason.message.contains("late is not served: it is on fire")));
    std::fs::remove_dir(&path).expect("removed");
    config.write_volume(&late).expect("written");
    daemon.remove_volume("late").await.expect("removed");
    assert!(!path.exists() && !locked(&daemon.config).volumes.contains_key(&late.name));
    daemon.stop_groups().await;
}

/// What a reload had found written down, and served, was taken out of the configuration: after the next start nobody served it.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_serves_is_not_given_up_by_who_was_adding_it() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let late = running.late();
    let path = locked(&daemon.config).write_volume(&late).expect("written");
    daemon.reload().await.expect("valid");
    let late = VolumeConfig { insert: true, ..late };
    let error = daemon.give_up_adding(&late, &anyhow::anyhow!("it is on fire")).await;
    assert!(error.message.contains("a reload has found it") && error.message.contains("on fire"), "{error:?}");
    assert!(path.exists() && locked(&daemon.config).volumes.contains_key(&late.name));
    assert_eq!(daemon.volumes.served(), 2);
    daemon.stop_groups().await;
}

/// The disk of a volume that had left was shown while the volume was opened again: beside its tap, and to whoever checks it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_opens_a_volume_whose_disk_is_being_shown() {
    let running = Running::of(Backings::of_slow_host).await;
    let (daemon, late) = (running.daemon.clone(), running.late());
    let hidden = VolumeConfig { backing: "/dev/nothing".into(), tap: TapConfig::Ublk, ..late.clone() };
    daemon.around.backings.take(&hidden, &daemon.around.source).expect("taken");
    let not_yet = SlowEnd::of(&running.at);
    let (adding, given_up) = (daemon.clone(), late.clone());
    let shown = tokio::spawn(async move { adding.give_up_adding(&given_up, &anyhow::anyhow!("it is on fire")).await });
    while !not_yet.is_met() {
        tokio::task::yield_now().await;
    }
    assert_eq!(daemon.add_volume(&running.add("late")).await.expect_err("not now").code, ErrorCode::Busy);
    // Nor does a reload; what it finds is opened by who was in its way.
    locked(&daemon.config).write_volume(&late).expect("written");
    daemon.reload().await.expect("valid");
    assert_eq!(daemon.volumes.served(), 1);
    drop(not_yet);
    assert!(shown.await.expect("it ends").message.contains("on fire"));
    while daemon.volumes.served() < 2 {
        tokio::task::yield_now().await;
    }
    daemon.stop_groups().await;
}

/// The device of a volume that was added did not answer its opening, and no other command was heard for as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_opening_waits_holds_up_no_other_change() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    // What is known of it is there when somebody writes it.
    let meta = running.folder("late").join("meta.json");
    nix::unistd::mkfifo(&meta, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let (adding, add) = (daemon.clone(), running.add("late"));
    let added = tokio::spawn(async move { adding.add_volume(&add).await });
    while daemon.volumes.opening().is_empty() {
        tokio::task::yield_now().await;
    }
    daemon.add_volume(&running.add("other")).await.expect("added");
    assert_eq!(daemon.volumes.opening(), ["late"]);
    assert!(daemon.reload().await.expect("valid").failed.is_empty());
    let mut twice = running.add("late");
    assert_eq!(daemon.add_volume(&twice).await.expect_err("it is being added").code, ErrorCode::Busy);
    assert_eq!(daemon.remove_volume("late").await.expect_err("it is being added").code, ErrorCode::Busy);
    twice.name = "twice".to_owned();
    let refused = daemon.add_volume(&twice).await.expect_err("its backing is spoken for");
    assert!(refused.message.contains("backs volume late"), "{refused:?}");
    let of_data = std::fs::read(running.folder("data").join("meta.json")).expect("read");
    tokio::task::spawn_blocking(|| std::fs::write(meta, of_data)).await.expect("it ends").expect("written");
    let refused = added.await.expect("it ends").expect_err("its state is another's");
    assert!(refused.message.contains("meta.json is that of volume data"), "{refused:?}");
    assert!(daemon.volumes.served() == 2 && !daemon.volumes.is_added(&"late".parse().expect("a name")));
    assert!(locked(&daemon.config).volumes.keys().map(Name::as_str).eq(["data", "other"]));
    daemon.stop_groups().await;
}

/// A disk was out of service for a file that is made anew without loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_served_although_the_note_of_what_it_is_is_damaged() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let folder = running.folder("late");
    let kept = std::fs::read(running.folder("data").join("meta.json")).expect("read");
    let mut flipped = kept.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    for damaged in [&b""[..], b"{", b"\xff\0", &flipped] {
        std::fs::write(folder.join("meta.json"), damaged).expect("written");
        daemon.add_volume(&running.add("late")).await.expect("served all the same");
        assert_eq!(std::fs::read(folder.join("meta.json.damaged")).expect("kept aside"), damaged);
        let anew = crate::state_dir::volume_meta(&folder).expect("whole").expect("there");
        assert_eq!((anew.name.as_str(), anew.generation.0), ("late", 1));
        Running::remove(&daemon, "late").await;
        std::fs::create_dir_all(&folder).expect("made");
    }
    daemon.stop_groups().await;
}

/// A full or read-only disk was called a bug, a verify of a paused volume waited without end, and a tap at another's socket for 30 s.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_now_is_refused_with_what_to_do() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    daemon.pause("data", true).await.expect("paused");
    let refused = daemon.verify("data").await.expect_err("it would wait");
    assert!(refused.message.contains("farside volume resume data"), "{refused:?}");
    let add = running.add("late");
    let theirs = std::os::unix::net::UnixListener::bind(running.at.join("late-tap")).expect("bound");
    let began = std::time::Instant::now();
    let refused = daemon.add_volume(&add).await.expect_err("it is another's");
    assert!(refused.message.contains("somebody listens at") && began.elapsed() < Duration::from_secs(10), "{refused:?}");
    drop(theirs);
    daemon.add_volume(&add).await.expect("what is left of a socket keeps nobody away");
    Running::remove(&daemon, "late").await;
    let _ = std::fs::remove_dir_all(running.at.join("farsided.d"));
    std::fs::write(running.at.join("farsided.d"), "").expect("written");
    let group = GroupSettings { keep: Some(3), ..GroupSettings::default() };
    for refused in [daemon.set_group("default", &group).await.map(drop), daemon.set_limits(Limits::default()).await.map(drop)] {
        let refused = refused.expect_err("it cannot be written");
        assert!(refused.code == ErrorCode::Unavailable && refused.what_to_do.contains("disk"), "{refused:?}");
    }
    daemon.stop_groups().await;
}

/// While a host was being switched off, changes were accepted whose end nobody saw, and the status said nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_stops_says_so_and_changes_nothing_any_more() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let says_so = || async { daemon.status().await.reasons.iter().any(|reason| reason.code == Code::Stopping.word()) };
    assert!(!says_so().await);
    for phase in [Phase::Ending, Phase::Stopping] {
        *locked(&daemon.phase) = phase;
        assert!(says_so().await, "{phase:?}");
        let group = GroupSettings { keep: Some(3), ..GroupSettings::default() };
        for refused in [
            daemon.reload().await.map(drop),
            daemon.add_volume(&running.add("late")).await,
            daemon.remove_volume("data").await,
            daemon.set_group("default", &group).await.map(drop),
            daemon.set_limits(Limits::default()).await.map(drop),
            daemon.pause("data", true).await,
            daemon.resync("data", None, None).await,
            daemon.verify("data").await,
            daemon.pair("token").await.map(drop),
            daemon.unpair().await.map(drop),
        ] {
            let refused = refused.expect_err("it stops");
            assert!(refused.code == ErrorCode::Conflict && refused.message.contains("is stopping"), "{refused:?}");
        }
        assert_eq!(daemon.volumes.served(), 1);
    }
    daemon.stop_groups().await;
    // What its groups do not tell of any more is not opened, either.
    let reasons = daemon.status().await.reasons;
    assert!(reasons.iter().any(|reason| reason.message.contains("data is being closed")), "{reasons:?}");
}

#[test]
fn why_a_pairing_failed_is_said_once_with_its_own_way_out() {
    use farside_transport::{CloseCode, PairingRefusal};
    let refused =
        |refusal: PairingRefusal| why_not_paired(&DialError::Refused { code: refusal.code(), reason: refusal.to_string() });
    for refusal in [PairingRefusal::Expired, PairingRefusal::Used, PairingRefusal::Unknown] {
        let error = refused(refusal);
        assert!(!error.message.contains("make a new") && error.what_to_do.contains("farside-receiver token"), "{error:?}");
    }
    let taken = refused(PairingRefusal::NameTaken("db1".parse().expect("a name")));
    assert!(taken.message.contains("--replace") && taken.what_to_do.is_empty(), "{taken:?}");
    assert_eq!(CloseCode::TokenExpired, PairingRefusal::Expired.code());
    let unknown = DialError::Unresolved { address: "nosuch.invalid:7400".into(), reason: "unknown".into() };
    let error = why_not_paired(&unknown);
    assert!(error.message.contains("nosuch.invalid") && error.what_to_do.contains("DNS"), "{error:?}");
    let silent = why_not_paired(&DialError::Unreachable { address: "192.0.2.1:7400".into(), over_tcp: None });
    assert!(silent.what_to_do.contains("good"), "{silent:?}");
}

/// Whatever kept the API from its socket ended the daemon before any tap was there, and systemd started it again for ever.
#[tokio::test(flavor = "multi_thread")]
async fn taps_do_not_wait_for_the_socket_of_the_api() {
    let dir = tempfile::tempdir_in(".").expect("temp dir");
    let at = dir.path().canonicalize().expect("there");
    let (daemon, _noticed) = not_begun(&at, "name='h1'", Backings::of);
    let socket = at.join("run/api.sock");
    std::fs::write(&socket, "somebody else's").expect("written");
    let (api, opened) = daemon.begin().await.expect("it begins");
    tokio::time::timeout(PATIENCE, opened.join_all()).await.expect("the service is ready without it");
    assert_eq!(daemon.volumes.served(), 1);
    assert_eq!(std::fs::read_to_string(&socket).expect("there"), "somebody else's");
    std::fs::remove_file(&socket).expect("removed");
    let there = async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.expect("it is tried again");
    api.abort();
    daemon.stop_groups().await;
}

/// Whoever had a volume's disk when the daemon started was gone a moment later, and the volume stayed unserved until a person came, with
/// its host waiting in its device.
#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_opened_is_tried_again_until_it_is_served_or_not_wanted() {
    let running = Running::new().await;
    let daemon = running.daemon.clone();
    let late: Name = "late".parse().expect("a name");
    let path = running.at.join("farsided.toml");
    let without = std::fs::read_to_string(&path).expect("read");
    let with = |without: &str| {
        let at = running.at.display();
        format!("{without}[[volume]]\nname='late'\nbacking='{at}/late'\ntap='nbd:unix:{at}/late-tap'\n")
    };
    let meta = running.folder("late").join("meta.json");
    let is_tried = || locked(&daemon.volumes.tried_again).contains(&late);
    let until = async |what: &str, is_so: &dyn Fn() -> bool| {
        let so = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("{what} was waited for in vain"));
    };
    // It is tried until what is wrong is mended.
    std::fs::copy(running.folder("data").join("meta.json"), &meta).expect("copied");
    std::fs::write(&path, with(&without)).expect("written");
    let failed = daemon.reload().await.expect("valid").failed;
    assert!(failed.len() == 1 && failed[0].contains("meta.json"), "{failed:?}");
    assert!(is_tried());
    let told = daemon.untold(&[], &[]).into_iter().find(|volume| volume.name == "late").expect("told").reasons;
    assert!(told[0].what_to_do.contains("tried again by itself"), "{told:?}");
    std::fs::remove_file(&meta).expect("removed");
    until("the volume", &|| daemon.volumes.is_served(&late)).await;
    until("the end of the trials", &|| !is_tried()).await;
    // It is not wanted any more.
    std::fs::write(&path, &without).expect("written");
    Running::remove(&daemon, "late").await;
    let spoil = || {
        std::fs::create_dir_all(meta.parent().expect("a folder")).expect("made");
        std::fs::copy(running.folder("data").join("meta.json"), &meta).expect("copied");
        std::fs::write(&path, with(&without)).expect("written");
    };
    spoil();
    assert_eq!(daemon.reload().await.expect("valid").failed.len(), 1);
    std::fs::write(&path, &without).expect("written");
    Running::remove(&daemon, "late").await;
    until("the end of the trials", &|| !is_tried()).await;
    // A person says so, whoever tries at that moment: it is served when that is answered.
    spoil();
    assert_eq!(daemon.reload().await.expect("valid").failed.len(), 1);
    std::fs::remove_file(&meta).expect("removed");
    assert!(daemon.reload().await.expect("valid").failed.is_empty());
    assert!(daemon.volumes.is_served(&late));
    daemon.stop_groups().await;
}

/// What a host is called is changed by hostnamectl, or by a DHCP server at a boot.
#[tokio::test]
async fn a_host_that_is_called_otherwise_serves_its_volumes_as_before() {
    let call = |name: &str| crate::source_name::tests::HOST.set(Some(name.to_owned()));
    let begin = async |dir, said| Running::begin(dir, said, Backings::of).await;
    call("a");
    let first = begin(tempfile::tempdir_in(".").expect("temp dir"), "").await.expect("served");
    let (id, mut dir) = (first.id, first.end().await);
    for host in ["b", "not a name"] {
        call(host);
        let again = begin(dir, "").await.expect("served");
        assert_eq!((again.id, again.daemon.around.source.as_str()), (id, "a"));
        dir = again.end().await;
    }
    // A person who says another is told which it was.
    let Err((dir, why)) = begin(dir, "name='b'").await else { panic!("it is served under another name") };
    assert!(why.contains("is of source a") && why.contains("this host is b now"), "{why}");
    // A build before kept none: the name that fits is the host's.
    call("a");
    std::fs::remove_file(dir.path().join("state/source-name")).expect("it was kept");
    let dir = begin(dir, "").await.expect("served").end().await;
    call("b");
    let again = begin(dir, "").await.expect("served");
    assert_eq!(again.id, id);
    // Or that of boot.json, if it was renamed before the build that keeps it came.
    let dir = again.end().await;
    std::fs::remove_file(dir.path().join("state/source-name")).expect("it was kept");
    std::fs::write(dir.path().join("boot.json"), r#"{"state_dir": "/x", "source": "a", "volumes": []}"#).expect("written");
    let again = begin(dir, "").await.expect("served");
    assert_eq!(again.id, id);
    // It is damaged, and a person says it.
    let dir = again.end().await;
    std::fs::write(dir.path().join("state/source-name"), "").expect("written");
    let again = begin(dir, "name='a'").await.expect("served");
    assert_eq!(again.id, id);
    assert_eq!(std::fs::read_to_string(again.at.join("state/source-name")).expect("kept anew"), "a");
}

/// † The group's last volume was removed while its hooks held something: nobody else looks for its note.
#[tokio::test(flavor = "multi_thread")]
async fn what_hooks_of_a_group_that_is_gone_left_is_tried_again_and_said() {
    let running = Running::new().await;
    let (may_end, ended) = (running.at.join("may-end"), running.at.join("ended"));
    let note = hooks::note(&running.daemon.around.runtime_dir, &"gone".parse().expect("a name"));
    let post_cut = format!("test -e '{}' && touch '{}'", may_end.display(), ended.display());
    let hook = farside_hooks::Hook {
        name: "database".parse().expect("a name"),
        what: farside_hooks::What::Command(["/bin/sh", "-c", &post_cut].map(str::to_owned).to_vec()),
        timeout: Duration::from_secs(10),
    };
    let plan = farside_hooks::Plan {
        version: farside_hooks::Plan::VERSION,
        group: "gone".parse().expect("a name"),
        volumes: Vec::new(),
        hooks: vec![hook],
        hold_ms: 1000,
        note: note.clone(),
        spared: Vec::new(),
    };
    std::fs::create_dir_all(note.parent().expect("a folder")).expect("made");
    let text = serde_json::json!({ "plan": plan, "begun": ["database"] }).to_string();
    std::fs::write(&note, text).expect("written");
    std::fs::set_permissions(&note, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("ours alone");

    let tries = tokio::spawn(running.daemon.clone().end_what_hooks_left());
    let said = async || {
        let reasons = running.daemon.status().await.reasons;
        reasons.into_iter().find(|reason| reason.code == Code::HooksFailed.word()).map(|reason| reason.message)
    };
    let until = async |is_said: bool| {
        while said().await.is_some() != is_said {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, until(true)).await.expect("it is said");
    let words = said().await.expect("until it is ended");
    assert!(words.contains("group gone") && words.contains("database"), "{words}");
    std::fs::write(&may_end, "").expect("written");
    tokio::time::timeout(PATIENCE, until(false)).await.expect("it is tried again");
    assert!(ended.exists() && !note.exists());
    tries.abort();
    let _ = tries.await;
    running.end().await;
}

/// The disk of the state directory fails, and its file system takes no write from then on; the daemon is killed. The next one found no map that it could
/// write, and a host whose own disk is well waited for ever.
#[test]
fn what_a_crash_left_on_a_disk_that_takes_no_write_is_served_and_lost_track_of() {
    let dir = tempfile::tempdir_in(".").expect("temp dir");
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("made");
    let Some(mounted) = Mounted::over(&state) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let dir = runtime.block_on(async {
        let running = Running::begin(dir, "name='h1'", Backings::of).await.expect("data is served");
        let folder = running.folder("data");
        let dir = running.end().await;
        IntentFile::leave_cold(&folder, &farside_region::Geometry::new(8 << 20).expect("valid"));
        mounted.set_read_only(true);

        // The second one finds the note of the first.
        let running = Running::begin(dir, "name='h1'", Backings::of).await.expect("data is served");
        let note = running.at.join(format!("run/tracking-lost-{}", running.id));
        let dir = running.end().await;
        assert!(note.exists() && !Mark::TrackingLost.is_set(&folder).expect("asked"), "nothing else keeps it");
        let running = Running::begin(dir, "name='h1'", Backings::of).await.expect("data is served");
        let tap = running.at.join("tap");
        let write = move || {
            let mut client = farside_nbd::client::Client::connect(&tap, "data").expect("connected");
            client.set_timeout(Some(PATIENCE)).expect("a socket");
            client.write(4 << 20, &[7; 4096], 0)
        };
        tokio::task::spawn_blocking(write).await.expect("it ends").expect("it is answered");
        let said = running.daemon.status().await.groups.remove(0).volumes.remove(0).reasons;
        let warns = "a power cut or reboot now would go unnoticed";
        assert!(said.iter().any(|reason| reason.message.contains(warns)), "{said:?}");

        mounted.set_read_only(false);
        let until = Instant::now() + PATIENCE;
        while !Mark::TrackingLost.is_set(&folder).expect("asked") {
            assert!(Instant::now() < until, "nobody keeps that everything must be compared");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while note.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        running.end().await
    });
    drop(mounted);
    drop(dir); // not before: what is mounted stays
}

/// One whose disk hangs kept status, the list of volumes, the metrics and `resync --accept` of all groups waiting.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_does_not_answer_keeps_the_others_from_nobody() {
    let mut running = Running::new().await;
    let at = running.at.display();
    let text = format!("[[volume]]\nname='late'\ngroup='db'\nbacking='{at}/late'\ntap='nbd:unix:{at}/late-tap'\n");
    std::fs::create_dir_all(running.at.join("farsided.d")).expect("made");
    std::fs::write(running.at.join("farsided.d/late.toml"), text).expect("written");
    let daemon = running.daemon.clone();
    assert!(daemon.reload().await.expect("valid").failed.is_empty());
    let db: Name = "db".parse().expect("a name");
    // Nobody reads this one.
    let (unread, notes) = Inbox::pair();
    let real = std::mem::replace(&mut locked(&daemon.groups).get_mut(&db).expect("it runs").inbox, unread);
    let first = async {
        loop {
            // However short that is for this machine: it is asked again until the other one was in time.
            let status = daemon.status_within(Duration::from_millis(20)).await;
            assert!(status.unanswered.iter().any(|group| group == "db"), "{status:?}");
            if status.groups.iter().any(|group| group.name == "default") {
                break status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, first).await.expect("the other one answers");
    let silent: Vec<&Reason> = status.reasons.iter().filter(|reason| reason.code == Code::GroupSilent.word()).collect();
    assert!(silent.len() == 1 && silent[0].message.contains("group db"), "{status:?}");
    assert!(status.groups.len() == 1 && status.groups[0].volumes[0].name == "data", "{status:?}");
    let untold = daemon.untold(&status.groups, &status.unanswered);
    assert!(untold.len() == 1 && untold[0].name == "late" && untold[0].reasons[0].code == Code::GroupSilent.word(), "{untold:?}");
    // What is said of another volume asks nobody else.
    let one = tokio::time::timeout(PATIENCE, daemon.volume_named("data")).await.expect("it is answered");
    assert!(one.is_some_and(|volume| volume.state != VolumeState::NotServed));
    locked(&daemon.groups).get_mut(&db).expect("it runs").inbox = real;
    drop(notes);
    assert!(daemon.volume_named("late").await.is_some_and(|volume| volume.state != VolumeState::NotServed));
    assert!(running.noticed.try_recv().is_err());
    drop(daemon);
    running.end().await;
}
