//! A daemon in this process, with what the kernel would have to do told to it.

use super::*;
use crate::tap::TapConfig;
use crate::volume::Served;

const PATIENCE: Duration = Duration::from_secs(60);

async fn lost(noticed: &mut mpsc::UnboundedReceiver<Noticed>) -> Noticed {
    tokio::time::timeout(PATIENCE, noticed.recv()).await.expect("it is said").expect("the daemon lives")
}

/// The device of a volume was ended by somebody else while the volume was being opened: what says so came before the volume was its
/// group's, and what was said then came before the supervisor knew that it is served. It stayed without a tap until a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_tap_that_was_lost_is_said_until_somebody_serves_it_again() {
    let dir = tempfile::tempdir_in(".").expect("temp dir");
    let at = dir.path().canonicalize().expect("there");
    for volume in ["data", "late"] {
        std::fs::write(at.join(volume), vec![0; 8 << 20]).expect("written");
    }
    std::fs::create_dir(at.join("run")).expect("made");
    let path = at.join("farsided.toml");
    let text = format!(
        "[source]\nname='h1'\nstate_dir='{at}/state'\napi_socket='{at}/run/api.sock'\n\
         [[volume]]\nname='data'\nbacking='{at}/data'\ntap='nbd:unix:{at}/tap'\n",
        at = at.display()
    );
    std::fs::write(&path, text).expect("written");
    let config = Config::load(&path).expect("valid");
    let state = Arc::new(StateDir::open(&config.source.state_dir).expect("ours"));
    let (notices, mut noticed) = mpsc::unbounded_channel();
    let daemon = Daemon::new(config.clone(), state.clone(), tokio::runtime::Handle::current(), notices).expect("a daemon");
    daemon.start_all().join_all().await;
    let (_, group, id) = daemon.find("data").expect("served");
    let inbox = locked(&daemon.groups)[&group].inbox.clone();

    inbox.send(Note::TapLost(id, "it was ended".into()));
    for _ in 0..2 {
        // Whoever hears it the first time may not be able to do anything about it.
        assert_eq!(lost(&mut noticed).await, Noticed::TapLost("data".parse().expect("a name")));
    }
    let data: Name = "data".parse().expect("a name");
    daemon.serve_again(&data).await;
    assert!(daemon.volumes.served() == 1 && daemon.ask(&data, Ask::TapLost).await.is_err(), "it is served again");
    while noticed.try_recv().is_ok() {}

    let mut late = config.volumes.values().next().expect("there is one").clone();
    late.name = "late".parse().expect("a name");
    late.backing = at.join("late");
    late.tap = TapConfig::Nbd { socket: at.join("late-tap") };
    let (folder, _) = state.volume_dir(&group, &late.name).expect("made");
    let shim = farside_shim::Group::new(&farside_shim::Limits::DEFAULT, farside_region::Geometry::GRANULE_BYTES);
    let opened = Served::open(late.clone(), folder, &shim, &daemon.around, &inbox).expect("opened");
    opened.0.tap_lost.set("it was ended".into()).expect("the first");
    let (reply, answer) = oneshot::channel();
    inbox.send(Note::Opened(Box::new(opened), reply));
    answer.await.expect("answered").expect("added");
    assert_eq!(lost(&mut noticed).await, Noticed::TapLost(late.name));
    assert_ne!(daemon.stop_groups().await, Stopped::LossUnkept);
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
    let silent = why_not_paired(&DialError::Unreachable { address: "192.0.2.1:7400".into() });
    assert!(silent.what_to_do.contains("good"), "{silent:?}");
}
