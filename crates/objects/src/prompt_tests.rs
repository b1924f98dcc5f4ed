use hyper::rt::ReadBuf;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// Whether the kernel holds acknowledgements of what comes back now, to send them along with an answer.
fn holds_back(stream: &TcpStream) -> bool {
    !SockRef::from(stream).tcp_quickack().expect("Linux says")
}

/// The failure: a service holds a small body back until its head is acknowledged, and the kernel the acknowledgement, on each connection on
/// which requests and answers go to and fro.
#[tokio::test]
async fn what_was_read_is_acknowledged_also_where_requests_and_answers_go_to_and_fro() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
    let mut server = listener.accept().await.expect("accept").0;
    let mut client = Acknowledging(TokioIo::new(client));
    let (mut request, mut head) = ([0; 4], [0; 4]);
    loop {
        client.0.inner_mut().write_all(b"get?").await.expect("write");
        server.read_exact(&mut request).await.expect("read");
        server.write_all(b"head").await.expect("write");
        client.0.inner().readable().await.expect("it comes");
        // Requests that come soon after an answer make the kernel do so.
        if holds_back(client.0.inner()) {
            break;
        }
        client.0.inner_mut().read_exact(&mut head).await.expect("read");
    }
    let mut space = [0; 16];
    let mut buffer = ReadBuf::new(&mut space);
    std::future::poll_fn(|cx| Pin::new(&mut client).poll_read(cx, buffer.unfilled())).await.expect("read");
    assert_eq!(buffer.filled(), b"head");
    assert!(!holds_back(client.0.inner()));
}

#[test]
fn only_requests_to_an_unencrypted_endpoint_itself_are_sent_so() {
    let within = Duration::from_secs(1);
    for other in ["https://s3.example", "s3.example:80", "", "ftp://s3.example"] {
        assert!(Prompt::to(other, within).is_none(), "{other}");
    }
    let prompt = Prompt::to("http://s3.example:8080/", within).expect("it is one");
    assert_eq!(prompt.endpoint.as_str(), "s3.example:8080");
}

/// An answer to each of so many connections, one after another.
async fn answers(listener: TcpListener, answers: Vec<String>) -> Vec<String> {
    let mut heard = Vec::new();
    for answer in answers {
        let mut stream = listener.accept().await.expect("accept").0;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.expect("read");
            request.push(byte[0]);
        }
        heard.push(String::from_utf8(request).expect("text").lines().next().expect("a line").to_owned());
        stream.write_all(answer.as_bytes()).await.expect("write");
    }
    heard
}

fn client(endpoint: &str) -> HttpClient {
    let prompt = Prompt::to(endpoint, Duration::from_secs(10)).expect("plain");
    prompt.connect(&ClientOptions::new().with_allow_http(true)).expect("a client")
}

fn get(uri: &str) -> HttpRequest {
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.uri_mut() = uri.parse().expect("a URI");
    request
}

/// As with the other client: it is followed.
#[tokio::test]
async fn where_a_service_redirects_to_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let moved = format!("HTTP/1.1 307 Moved\r\nlocation: {endpoint}/there\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let found = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nfound".to_owned();
    // Once to this client, and from the beginning to the one that follows.
    let served = tokio::spawn(answers(listener, vec![moved.clone(), moved, found]));
    let answer = client(&endpoint).execute(get(&format!("{endpoint}/here"))).await.expect("an answer");
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.expect("a body").to_bytes();
    assert_eq!(&body[..], b"found");
    assert_eq!(served.await.expect("served"), ["GET /here HTTP/1.1", "GET /here HTTP/1.1", "GET /there HTTP/1.1"]);
}

/// What is tried again is decided by the kind: as it is with the other client.
#[tokio::test]
async fn errors_have_the_kinds_by_which_requests_are_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let endpoint = format!("http://{}", listener.local_addr().expect("address"));
    let uri = format!("{endpoint}/here");
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfo".to_owned();
    let served = tokio::spawn(answers(listener, vec![String::new(), cut]));
    let client = client(&endpoint);
    let error = client.execute(get(&uri)).await.expect_err("no answer");
    assert!(matches!(error.kind(), HttpErrorKind::Request | HttpErrorKind::Interrupted), "{error:?}");
    let answer = client.execute(get(&uri)).await.expect("a head");
    let error = http_body_util::BodyExt::collect(answer.into_body()).await.expect_err("half a body");
    assert!(matches!(error.kind(), HttpErrorKind::Request | HttpErrorKind::Interrupted), "{error:?}");
    served.await.expect("served"); // and nobody listens any more
    let error = client.execute(get(&uri)).await.expect_err("no connection");
    assert_eq!(error.kind(), HttpErrorKind::Connect, "{error:?}");
}
