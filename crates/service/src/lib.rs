//! What both daemons are as services of an operating system: their log, their words with systemd, their
//! configuration files, their metrics, the socket of their API and HTTP on it.
//!
//! Owns nothing of Farside's data and imports the API's types only. Invariant: nothing here can end or hold up a daemon: a log
//! that cannot be written and a systemd that does not listen cost words only.

pub mod clients;
pub mod files;
pub mod http;
pub mod log;
pub mod metrics;
pub mod said;
pub mod socket;
pub mod systemd;

/// What went wrong, as one sentence: with its causes, but for those that it has the words of already.
pub fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        let words = one.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = one.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug)]
        struct Said(&'static str, Option<Box<Said>>);
        impl std::fmt::Display for Said {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.0)
            }
        }
        impl std::error::Error for Said {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                self.1.as_deref().map(|cause| cause as _)
            }
        }
        let cause = |words, cause| Some(Box::new(Said(words, cause)));
        let said = Said("cannot read x: no such file", cause("no such file", cause("gone", None)));
        assert_eq!(super::in_words(&said), "cannot read x: no such file: gone");
    }
}
