//! What people and programs say to the daemons' sockets: JSON bodies, names of points, rates.

use farside_control::receiver::{ReceiverStatus, Token, TokenRequest};
use farside_control::routes::PointsQuery;
use farside_control::source::{
    GroupSettings, LimitWindow, Limits, PairRequest, ResyncRequest, SourceStatus, VerifyStatus, VolumeAdd, VolumeStatus,
};
use farside_control::{
    Address, ApiError, PinRequest, Point, PointId, PointMember, PointRef, Rate, Verification, Window, select_point,
};
use farside_ledger::VolumeMeta;
use farside_region::Name;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ledger::meta;
use super::{no_seal, reads_back, small};
use crate::engine::{Outcome, Target, unmeasured};

pub(super) const TARGETS: &[Target] = &[
    Target {
        name: "api-json",
        what: "bodies of requests and answers of both APIs; what a volume was told to be, from the host's disk",
        seeds: json_seeds,
        seal: no_seal,
        words: &[b"null", b"true", b"{}", b"[]", b"\"\"", b"-1", b"1e400", b"18446744073709551615", b"\\ud800", b"[[[[[[[["],
        bytes_max: 4 << 10,
        memory: small(256),
        decode: json,
    },
    Target {
        name: "words",
        what: "points, addresses, rates, durations and names as people write them",
        seeds: || WORDS.iter().map(|word| word.as_bytes().to_vec()).collect(),
        seal: no_seal,
        words: &[
            b"latest",
            b"-",
            b"d",
            b"h",
            b"m",
            b"s",
            b"T",
            b"Z",
            b"/",
            b"Mbit",
            b"GiB/s",
            "é".as_bytes(),
            b"9223372036854775807",
        ],
        bytes_max: 256,
        memory: small(64),
        decode: words,
    },
];

const WORDS: &[&str] = &[
    "latest",
    "42",
    "42-9f3c2a1b",
    "2026-03-01T12:00:00Z",
    "2026-03-01T12:00:00.5+01:00",
    "-5m",
    "-1d2h3m4s",
    "host/db/v1",
    "20Mbit",
    "Mon-Fri 22:00-06:00",
    "64 MiB/s",
    "1h30m",
    "2d",
    "90s",
];

fn words(bytes: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(bytes) else { return Outcome::refused("not text") };
    let mut shape = Vec::new();
    if let Ok(wanted) = text.parse::<PointRef>() {
        shape.push(format!("{:?}", std::mem::discriminant(&wanted)));
        reads_back(&wanted, || wanted.to_string().parse().ok());
        unmeasured(|| {
            for now in [jiff::Timestamp::MIN, jiff::Timestamp::UNIX_EPOCH, jiff::Timestamp::MAX] {
                let _ = select_point([&sample_point()], wanted, now);
            }
        });
    }
    if let Ok(id) = text.parse::<PointId>() {
        reads_back(&id, || id.to_string().parse().ok());
    }
    if let Ok(address) = text.parse::<Address>() {
        reads_back(&address, || address.to_string().parse().ok());
        assert!(!address.name().is_empty());
    }
    if let Ok(window) = text.parse::<Window>() {
        shape.push("window".to_owned());
        reads_back(&window, || window.to_string().parse().ok());
    }
    if let Ok(rate) = text.parse::<Rate>() {
        shape.push("rate".to_owned());
        reads_back(&rate, || rate.to_string().parse().ok());
    }
    if let Ok(duration) = farside_control::parse_duration(text) {
        shape.push(format!("duration {}", duration.as_secs().checked_ilog2().unwrap_or(0)));
    }
    if let Ok(name) = text.parse::<Name>() {
        assert!(!name.as_str().contains('/') && !name.as_str().starts_with('.'), "a name that is no file's");
    }
    if shape.is_empty() && text.parse::<Address>().is_err() { Outcome::refused("nothing") } else { Outcome::accepted(shape) }
}

fn sample_point() -> Point {
    Point {
        id: PointId { slot: 7, tag: 0xabc0_0000 },
        source: "host".into(),
        group: "db".into(),
        cut_wall: jiff::Timestamp::UNIX_EPOCH,
        cut_mono_before_ns: 1,
        cut_mono_after_ns: 2,
        boot: "00".repeat(16),
        ledger_time_ms: 0,
        members: vec![PointMember {
            volume: "v1".into(),
            volume_id: "00".repeat(16),
            bytes: 4096,
            term: 0,
            seq: 7,
            layer_bytes: None,
        }],
        pinned: false,
        pins: Vec::new(),
        degraded: false,
        verified: Vec::new(),
        consistency: farside_control::Consistency::Application,
        cut: Some(farside_control::PointCut::new(&[7; 16], 3, 1_700_000_000_000)),
        title: "upgrade".into(),
        hooks: "srv".into(),
    }
}

/// Reads, writes and reads again; says how many bytes it was written as.
type Read = fn(&[u8]) -> Option<usize>;

/// What the first byte of an input chooses among.
const TYPES: &[Read] = &[
    read::<PairRequest>,
    read::<GroupSettings>,
    read::<Limits>,
    read::<VolumeAdd>,
    read::<ResyncRequest>,
    read::<PinRequest>,
    read::<TokenRequest>,
    read::<Token>,
    read::<PointsQuery>,
    read::<SourceStatus>,
    read::<VolumeStatus>,
    read::<ReceiverStatus>,
    read::<Vec<Point>>,
    read::<Verification>,
    read::<VerifyStatus>,
    read::<ApiError>,
    read::<VolumeMeta>,
];

fn read<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Option<usize> {
    let value: T = serde_json::from_slice(bytes).ok()?;
    unmeasured(|| {
        let written = serde_json::to_string(&value).expect("what was read can be written");
        let again: T = serde_json::from_str(&written).expect("what was written can be read");
        // Not every type can be compared; what both are written as can.
        assert_eq!(serde_json::to_string(&again).expect("as before"), written, "it is read as something else");
        Some(written.len())
    })
}

fn json_seeds() -> Vec<Vec<u8>> {
    let of = |kind: usize, text: String| [&[kind as u8], text.as_bytes()].concat();
    let text = |value: &dyn erased::Json| value.text();
    vec![
        of(0, r#"{"token":"farside1-aeaq"}"#.into()),
        of(
            1,
            text(&GroupSettings {
                consistent_every: Some("15m".into()),
                epoch_interval_ms: Some(1000),
                keep: Some(10),
                span_ms: Some(86_400_000),
                grid: Some("none".into()),
                rate: Some("20Mbit".into()),
            }),
        ),
        of(
            2,
            text(&Limits {
                rate_bytes_per_s: Some(2_500_000),
                windows: vec![LimitWindow { at: "Mon-Fri 09:00-18:00".into(), rate_bytes_per_s: 8_000 }],
                now_bytes_per_s: Some(8_000),
            }),
        ),
        of(3, r#"{"name":"data","group":"db","backing":"/dev/vdb"}"#.into()),
        of(4, r#"{"accept":"forked"}"#.into()),
        of(5, text(&PinRequest { reason: "before the upgrade".into() })),
        of(6, text(&TokenRequest::default())),
        of(9, text(&SourceStatus::default())),
        of(10, text(&VolumeStatus::default())),
        of(11, text(&ReceiverStatus::default())),
        of(12, text(&vec![sample_point()])),
        of(14, text(&VerifyStatus::default())),
        of(16, text(&meta(1))),
    ]
}

/// Values of different types in one list.
mod erased {
    pub(super) trait Json {
        fn text(&self) -> String;
    }

    impl<T: serde::Serialize> Json for T {
        fn text(&self) -> String {
            serde_json::to_string(self).expect("plain data")
        }
    }
}

fn json(bytes: &[u8]) -> Outcome {
    let Some((kind, bytes)) = bytes.split_first() else { return Outcome::refused("nothing") };
    let kind = usize::from(*kind) % TYPES.len();
    match TYPES[kind](bytes) {
        None => Outcome::refused(["not one of these", "nor of those"][kind % 2]),
        Some(written) => Outcome::accepted((kind, written.ilog2())),
    }
}
