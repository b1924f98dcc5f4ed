//! AWS Signature Version 4 in the `Authorization` header, as the documentation of S3's REST interface has it ("Authenticating
//! Requests: Using the Authorization Header"). Owned here: what is signed, in which words, and how it is said. A path is signed as it is
//! sent; a query is taken to be written as it is signed, which holds for requests on one object.

use std::fmt::Write as _;

use aws_lc_rs::{digest, hmac};
use data_encoding::HEXLOWER;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What a signature covers.
#[derive(Clone, Debug)]
pub(crate) struct Covered<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    /// Names in small letters, in their order.
    pub(crate) headers: Vec<(String, String)>,
    /// `x-amz-content-sha256`
    pub(crate) payload: &'a str,
    /// `x-amz-date`
    pub(crate) time: &'a str,
    pub(crate) region: &'a str,
}

impl<'a> Covered<'a> {
    /// Reads what the signature of a request covers, and the signature; `None` where there is none of this kind.
    pub(crate) fn of(request: &'a Parts) -> Option<(Self, &'a str)> {
        let header = |name: &str| request.headers.get(name)?.to_str().ok();
        let given = header(AUTHORIZATION.as_str())?.strip_prefix(ALGORITHM)?;
        let field = |name: &str| given.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
        let headers = field("SignedHeaders")?.split(';').map(|name| Some((name.to_owned(), header(name)?.trim().to_owned())));
        let covered = Self {
            method: request.method.as_str(),
            path: request.uri.path(),
            query: request.uri.query().unwrap_or_default(),
            headers: headers.collect::<Option<_>>()?,
            payload: header("x-amz-content-sha256")?,
            time: header("x-amz-date")?,
            region: field("Credential")?.split('/').nth(2)?,
        };
        Some((covered, field("Signature")?))
    }

    /// The value of the `Authorization` header.
    pub(crate) fn authorization(&self, access_key: &str, secret_key: &str) -> String {
        let (scope, names, signature) = (self.scope(), self.names(), self.signature(secret_key));
        format!("{ALGORITHM} Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}")
    }

    /// The signature alone.
    pub(crate) fn signature(&self, secret_key: &str) -> String {
        let mut request = format!("{}\n{}\n{}\n", self.method, self.path, self.query);
        for (name, value) in &self.headers {
            writeln!(request, "{name}:{value}").expect("into a string");
        }
        write!(request, "\n{}\n{}", self.names(), self.payload).expect("into a string");
        let request = HEXLOWER.encode(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let text = format!("{ALGORITHM}\n{}\n{}\n{request}", self.time, self.scope());
        let first = format!("AWS4{secret_key}").into_bytes();
        let key = [self.day(), self.region, "s3", "aws4_request"].iter().fold(first, |key, word| mac(&key, word));
        HEXLOWER.encode(&mac(&key, &text))
    }

    fn day(&self) -> &str {
        self.time.split('T').next().unwrap_or_default()
    }

    fn scope(&self) -> String {
        format!("{}/{}/s3/aws4_request", self.day(), self.region)
    }

    fn names(&self) -> String {
        self.headers.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";")
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    /// "Example: GET Object" of the documentation.
    #[test]
    fn the_example_of_the_documentation_is_signed_and_read_as_it_says() {
        let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
            SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
            Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41";
        let request = Request::get("/test.txt")
            .header("Host", "examplebucket.s3.amazonaws.com")
            .header("Range", "bytes=0-9")
            .header("x-amz-content-sha256", nothing)
            .header("x-amz-date", "20130524T000000Z")
            .header("Authorization", authorization)
            .body(())
            .expect("a request");
        let (parts, ()) = request.into_parts();
        let (covered, given) = Covered::of(&parts).expect("a signature");
        let secret_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert_eq!(covered.signature(secret_key), given);
        assert_eq!(covered.authorization("AKIAIOSFODNN7EXAMPLE", secret_key), authorization);
        assert_ne!(covered.signature("another"), given);
    }
}
