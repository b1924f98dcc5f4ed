//! The client against a socket whose other end says exactly what a test wants.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::ErrorCode;

/// Answers one request with `answer`; returns what was asked.
async fn serve_once(listener: UnixListener, answer: &str) -> String {
    let (mut stream, _) = listener.accept().await.expect("a client");
    let mut asked = Vec::new();
    while !asked.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.expect("a request");
        asked.extend_from_slice(&chunk[..n]);
        assert!(n > 0, "the client hung up");
    }
    stream.write_all(answer.as_bytes()).await.expect("an answer");
    String::from_utf8(asked).expect("text")
}

fn http(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn ask(answer: &str) -> (Result<VolumeStatus, ClientError>, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let client = Client::new(Daemon::Source, &socket);
    tokio::join!(client.volume("data"), serve_once(listener, answer))
}

#[tokio::test]
async fn an_answer_of_a_newer_daemon_is_understood() {
    let body = r#"{"name":"data","bytes":4096,"state":{"state":"behind","what":"comparing","progress":{"done_bytes":1,"total_bytes":2}},"news":[1]}"#;
    let (answer, asked) = ask(&http("200 OK", body)).await;
    let answer = answer.expect("an answer");
    assert!(asked.starts_with("GET /v1/volumes/data HTTP/1.1\r\n"), "{asked}");
    assert_eq!((answer.name.as_str(), answer.bytes, answer.state.word()), ("data", 4096, "Behind"));
}

#[tokio::test]
async fn an_error_arrives_with_what_to_do() {
    let body = r#"{"code":"refused","message":"volume data is Forked","what_to_do":"farside volume resync"}"#;
    let (answer, _) = ask(&http("403 Forbidden", body)).await;
    let error = answer.expect_err("an error");
    assert_eq!((error.to_string().as_str(), error.what_to_do().as_str()), ("volume data is Forked", "farside volume resync"));
    let (answer, _) = ask(&http("400 Bad Request", r#"{"code":"from_the_future","message":"m"}"#)).await;
    assert!(matches!(answer, Err(ClientError::Api(ApiError { code: ErrorCode::Unknown, .. }))));
}

#[tokio::test]
async fn a_socket_tells_whose_it_is() {
    let statuses = [
        (serde_json::to_string(&crate::source::SourceStatus::default()), Daemon::Source),
        (serde_json::to_string(&ReceiverStatus::default()), Daemon::Receiver),
    ];
    for (body, daemon) in statuses {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let answer = http("200 OK", &body.expect("json"));
        let (client, _) = tokio::join!(Client::identify(&socket), serve_once(listener, &answer));
        assert_eq!(client.expect("an answer").daemon(), daemon);
    }
}

#[tokio::test]
async fn garbage_is_named_and_not_believed() {
    let (answer, _) = ask(&http("200 OK", "<html>")).await;
    assert!(matches!(answer, Err(ClientError::NotUnderstood { status: 200, .. })), "{answer:?}");
    let (answer, _) = ask(&http("502 Bad Gateway", "x")).await;
    assert!(matches!(answer, Err(ClientError::NotUnderstood { status: 502, .. })), "{answer:?}");
    let (answer, _) = ask(&http("404 Not Found", "")).await;
    assert!(matches!(&answer, Err(ClientError::Api(error)) if *error == ApiError::unknown_request("farsided")), "{answer:?}");
    let (answer, _) = ask("SSH-2.0\r\n").await;
    assert!(matches!(answer, Err(ClientError::HungUp { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_daemon_that_does_not_run_is_said_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let client = Client::new(Daemon::Receiver, &socket);
    let error = client.receiver_status().await.expect_err("nobody there");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
    assert!(error.what_to_do().contains("systemctl start farside-receiver"), "{}", error.what_to_do());
    // A socket file that a dead daemon left behind.
    drop(UnixListener::bind(&socket).expect("a socket"));
    let error = client.receiver_status().await.expect_err("nobody there");
    assert!(error.is_unreachable() && matches!(error, ClientError::NotRunning { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_daemon_ends_in_a_time_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let client = Client::new(Daemon::Source, &socket).with_timeout(Duration::from_secs(3));
    let error = client.source_status().await.expect_err("silence");
    assert!(matches!(error, ClientError::TimedOut { .. }), "{error:?}");
    assert_eq!(error.to_string(), "farsided did not answer within 3 s");
}

#[test]
fn states_keep_their_json() {
    let state = VolumeStatus {
        state: crate::source::VolumeState::Behind {
            what: crate::source::BehindWhat::FirstSync,
            progress: crate::source::Progress { done_bytes: 3, total_bytes: 9 },
        },
        ..VolumeStatus::default()
    };
    let json = serde_json::to_value(&state).expect("json");
    let expected = serde_json::json!({"state": "behind", "what": "first_sync", "progress": {"done_bytes": 3, "total_bytes": 9}});
    assert_eq!(json["state"], expected);
    assert_eq!(json["counters"]["writes"], 0);
    assert_eq!(serde_json::from_value::<VolumeStatus>(json).expect("itself"), state);
}

#[test]
fn secrets_are_not_debug_printed() {
    let request = PairRequest { token: "sesame".into() };
    assert!(!format!("{request:?}").contains("sesame"));
    let token = Token {
        token: "sesame".into(),
        address: "a:1".into(),
        fingerprint: "f".into(),
        expires: "2026-01-01T00:00:00Z".parse().expect("a time"),
    };
    assert!(!format!("{token:?}").contains("sesame"));
}

/// A request that says little is understood by a daemon that knows nothing of what was added since; what is said is sent, also "no".
#[test]
fn a_request_is_sent_without_what_it_does_not_say() {
    let text = |request: &PointWanted| String::from_utf8(body_of(request)).expect("text");
    let wanted = PointWanted { title: "upgrade".into(), ..PointWanted::default() };
    assert_eq!(text(&wanted), r#"{"title":"upgrade"}"#);
    let without = PointWanted { hooks: Some(false), ..wanted };
    assert_eq!(text(&without), r#"{"hooks":false,"title":"upgrade"}"#);
    assert_eq!(serde_json::from_slice::<PointWanted>(&body_of(&without)).expect("understood"), without);
    // A daemon says of a field that it does not know which that is.
    let refused = serde_json::from_str::<PointWanted>(r#"{"tittle":"upgrade"}"#).expect_err("it is misspelt").to_string();
    assert!(refused.contains("`tittle`"), "{refused}");
}
