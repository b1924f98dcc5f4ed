//! Points under legal hold: only the release of the very case ends one.

use farside_control::client::Client;
use farside_control::routes::{PointsQuery, UnpinQuery};
use farside_control::{ClientError, ErrorCode, HoldRequest, PIN_REASON_BYTES_MAX, PinRequest, Point};
use farside_ledger::LayerKind;

use crate::site::{Gateway, granules, wait_until};

fn anything() -> PointsQuery {
    PointsQuery { of: Some("host1/default".into()), limit: None }
}

async fn pin(client: &Client, point: &str, reason: &str) -> Result<Point, ClientError> {
    client.point_pin(point, &anything(), &PinRequest { reason: reason.into() }).await
}

async fn hold(client: &Client, point: &str, case: &str) -> Result<Point, ClientError> {
    client.point_hold(point, &anything(), &HoldRequest { case: case.into() }).await
}

async fn release(client: &Client, point: &str, case: &str) -> Result<Point, ClientError> {
    client.point_release(point, &anything(), &HoldRequest { case: case.into() }).await
}

fn kept_for(point: &Point) -> Vec<&str> {
    point.pins.iter().map(|pin| pin.reason.as_str()).collect()
}

/// What is wrong, and what to do.
fn refused(answer: Result<Point, ClientError>, code: ErrorCode) -> String {
    let ClientError::Api(error) = answer.expect_err("refused") else { panic!("by the gateway") };
    assert_eq!(error.code, code, "{error:?}");
    format!("{} {}", error.message, error.what_to_do)
}

#[tokio::test]
async fn a_legal_hold_stays_until_its_case_is_released_whatever_else_is_withdrawn() {
    let mut gateway = Gateway::new("");
    gateway.start().await;
    let host = gateway.pair("host1").await;
    let mut source = host.connect("default").await;
    let volume = source.claim("data").await;
    source.set_keep(1).await;
    source.publish(&volume, 1, &granules(0, 40), LayerKind::Point).await;
    let client = gateway.client();
    let id = gateway.points(None).await[0].id.to_string();

    pin(&client, &id, "before the upgrade").await.expect("pinned");
    hold(&client, &id, "audit 17").await.expect("held");
    hold(&client, &id, "audit 4").await.expect("held");
    let held = hold(&client, &id, "audit 17").await.expect("held already");
    assert_eq!(kept_for(&held), ["before the upgrade", "legal hold: audit 17", "legal hold: audit 4"]);
    assert_eq!(held.pins[1].case(), Some("audit 17"));
    for all in [false, true] {
        let query = UnpinQuery { of: anything().of, all };
        let point = client.point_unpin(&id, &query).await.expect("unpinned");
        assert_eq!(kept_for(&point), ["legal hold: audit 17", "legal hold: audit 4"], "all: {all}");
    }
    // No other case, no part of one, and not all at once.
    for case in ["audit", "legal hold: audit 4", ""] {
        let words = refused(release(&client, &id, case).await, ErrorCode::NotFound);
        assert!(words.contains("audit 17, audit 4"), "{words}");
    }
    // A hold names its case, fits into its record as a whole, and is made by no other way.
    refused(hold(&client, &id, " ").await, ErrorCode::BadRequest);
    refused(hold(&client, &id, &"x".repeat(PIN_REASON_BYTES_MAX)).await, ErrorCode::BadRequest);
    let words = refused(pin(&client, &id, "legal hold: audit 5").await, ErrorCode::BadRequest);
    assert!(words.contains("farside point hold"), "{words}");

    // Retention and a restart leave it.
    gateway.stop();
    gateway.start().await;
    let mut source = host.connect_when_ready("default").await;
    let volume = source.claim_above("data", &volume).await;
    source.set_keep(1).await;
    for seq in 1..=3 {
        source.publish(&volume, seq, &granules(1000 * seq, 1), LayerKind::Point).await;
    }
    let retained = async || gateway.points(None).await;
    wait_until("the policy to be kept", async || retained().await.len() == 2).await;
    assert_eq!(retained().await[1].id.to_string(), id);
    let client = gateway.client();
    assert_eq!(kept_for(&release(&client, &id, "audit 17").await.expect("released")), ["legal hold: audit 4"]);
    assert!(kept_for(&release(&client, &id, "audit 4").await.expect("released")).is_empty());
    source.publish(&volume, 4, &granules(9000, 1), LayerKind::Point).await;
    wait_until("it to go", async || retained().await.len() == 1).await;
    refused(release(&client, &id, "audit 4").await, ErrorCode::NotFound);
    gateway.stop();
    gateway.check_store();
}
