//! One request over a connection of its own, for what the harness itself wants of a server. No runtime, so that it may be called
//! from anywhere.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use jiff::Timestamp;

use crate::{Bucket, PATIENCE, signature};

/// The SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Sends a signed request without a body; gives the whole answer. `query`: as it is signed. `more`: headers between `host` and
/// `x-amz-content-sha256` by their names.
pub(crate) fn signed(method: &str, bucket: &Bucket, (path, query): (&str, &str), more: &[(&str, &str)]) -> io::Result<String> {
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let host = bucket.address().to_string();
    let (to, own) = ([("host", host.as_str())], [("x-amz-content-sha256", NOTHING), ("x-amz-date", time.as_str())]);
    let headers = to.iter().chain(more).chain(&own);
    let headers = headers.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let covered = signature::Covered { method, path, query, headers, payload: NOTHING, time: &time, region: Bucket::REGION };
    let authorization = covered.authorization(&bucket.access_key, &bucket.secret_key);
    let headers: String = covered.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    plain(bucket.address(), &format!("{method} {path} HTTP/1.1\r\n{headers}authorization: {authorization}\r\ncontent-length: 0"))
}

/// Sends a request line with headers; gives the whole answer.
pub(crate) fn plain(address: SocketAddr, head: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
