//! Each server does what the conformance suite counts on it for: it holds create-only, ignores it, holds it until there is a race, or
//! fails as it is told.

use std::time::Duration;

use farside_s3_servers::{Bucket, Counts, Ending, Fault, Faults, Kind, RadosGw, StripsCreateOnly, WrongInARace};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ClientOptions, Error, ObjectStore, ObjectStoreExt as _, PutMode, PutResult, RetryConfig};
use tokio::task::JoinSet;

/// A client that asks once.
fn client(bucket: &Bucket) -> AmazonS3 {
    client_with(bucket, ClientOptions::new())
}

fn client_with(bucket: &Bucket, options: ClientOptions) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_endpoint(&bucket.endpoint)
        .with_access_key_id(&bucket.access_key)
        .with_secret_access_key(&bucket.secret_key)
        .with_bucket_name(&bucket.name)
        .with_region(Bucket::REGION)
        .with_allow_http(true)
        .with_client_options(options.with_allow_http(true))
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .build()
        .expect("a client")
}

async fn create(client: &AmazonS3, key: &str, content: &'static str) -> Result<PutResult, Error> {
    client.put_opts(&Path::from(key), content.into(), PutMode::Create.into()).await
}

async fn read(client: &AmazonS3, key: &str) -> String {
    let bytes = client.get(&Path::from(key)).await.expect("it is there").bytes().await.expect("all of it");
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// How many of four who create the same object at once are told that they did.
async fn winners(client: &AmazonS3, key: &str) -> usize {
    let mut racers = JoinSet::new();
    for content in ["a", "b", "c", "d"] {
        let (client, key) = (client.clone(), key.to_owned());
        racers.spawn(async move { create(&client, &key, content).await.is_ok() });
    }
    racers.join_all().await.into_iter().filter(|won| *won).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn radosgw_creates_once_also_in_a_race() {
    let client = client(&RadosGw::shared().bucket());
    create(&client, "a/record", "first").await.expect("created");
    let again = create(&client, "a/record", "second").await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    assert_eq!(read(&client, "a/record").await, "first");
    for round in 0..50 {
        assert_eq!(winners(&client, &format!("race/{round}")).await, 1, "in round {round}");
    }
}

#[tokio::test]
async fn each_bucket_is_somebodys_own_and_a_wrong_secret_opens_none() {
    let [mine, other] = [(); 2].map(|()| RadosGw::shared().bucket());
    client(&mine).put(&Path::from("x"), "mine".into()).await.expect("written");
    let in_other = client(&other).get(&Path::from("x")).await;
    assert!(matches!(in_other, Err(Error::NotFound { .. })), "{in_other:?}");
    for bucket in [mine.clone(), StripsCreateOnly::before(&mine).bucket(), WrongInARace::start().bucket()] {
        let wrong = Bucket { secret_key: "wrong".to_owned(), ..bucket };
        let refused = create(&client(&wrong), "y", "by nobody").await;
        assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{wrong:?}: {refused:?}");
    }
}

#[tokio::test]
async fn behind_what_strips_the_condition_a_second_create_succeeds() {
    let bucket = RadosGw::shared().bucket();
    let strips = StripsCreateOnly::before(&bucket);
    let through = client(&strips.bucket());
    create(&through, "record", "first").await.expect("created");
    create(&through, "record", "second").await.expect("overwritten");
    assert_eq!(read(&client(&bucket), "record").await, "second");
    assert_eq!(read(&through, "record").await, "second");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_in_a_race_is_right_without_one() {
    let server = WrongInARace::start();
    let client = client(&server.bucket());
    create(&client, "record", "first").await.expect("created");
    let again = create(&client, "record", "second").await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })), "{again:?}");
    for round in 0..200 {
        if winners(&client, &format!("race/{round}")).await > 1 {
            return;
        }
    }
    panic!("200 races, and never two winners");
}

#[tokio::test]
async fn what_is_lost_after_the_server_was_committed_and_before_it_was_not() {
    let bucket = RadosGw::shared().bucket();
    let faults = Faults::before(&bucket);
    let (through, direct) = (client(&faults.bucket()), client(&bucket));
    let endings = [
        ("slow", Ending::SlowDown),
        ("internal", Ending::InternalError),
        ("conflict", Ending::Conflict),
        ("forbidden", Ending::Forbidden),
        ("expired", Ending::ExpiredToken),
        ("closed", Ending::Closed),
        ("reset", Ending::Reset),
    ];
    for (name, ending) in endings {
        for (reaches, fault) in [(false, Fault::Before(ending)), (true, Fault::After(ending))] {
            let key = format!("{name}-{reaches}");
            faults.fault(move |request| if request.kind == Kind::Put { fault } else { Fault::Pass });
            create(&through, &key, "content").await.expect_err("it was told of a failure");
            let there = direct.head(&Path::from(key)).await;
            assert_eq!(there.is_ok(), reaches, "{name}: {there:?}");
        }
    }
    faults.fault(|_| Fault::Before(Ending::AlreadyThere));
    let refused = create(&through, "refused", "content").await;
    assert!(matches!(refused, Err(Error::AlreadyExists { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_nobody_answers_is_carried_out_all_the_same() {
    let bucket = RadosGw::shared().bucket();
    let faults = Faults::before(&bucket);
    let impatient = client_with(&faults.bucket(), ClientOptions::new().with_timeout(Duration::from_millis(500)));
    faults.fault(|_| Fault::After(Ending::Silence));
    create(&impatient, "record", "content").await.expect_err("nobody answers");
    // The server does not know that nobody waits any more, and takes its own time.
    let direct = client(&bucket);
    while direct.head(&Path::from("record")).await.is_err() {}
    assert_eq!(read(&direct, "record").await, "content");
}

#[tokio::test]
async fn requests_are_counted_by_kind_and_told_to_the_rule() {
    let faults = Faults::before(&RadosGw::shared().bucket());
    let through = client(&faults.bucket());
    faults.fault(|request| {
        let is_second_put = request.kind == Kind::Put && request.nth == 2;
        assert_eq!(request.creates_only, request.key == "created");
        if is_second_put { Fault::Before(Ending::SlowDown) } else { Fault::Pass }
    });
    create(&through, "created", "content").await.expect("the first passes");
    let second = through.put(&Path::from("second"), "content".into()).await;
    assert!(second.is_err(), "{second:?}");
    through.put(&Path::from("third"), "content".into()).await.expect("the third passes");
    through.head(&Path::from("third")).await.expect("it is there");
    read(&through, "third").await;
    through.delete(&Path::from("third")).await.expect("deleted");
    assert_eq!(through.list_with_delimiter(None).await.expect("a list").objects.len(), 1);
    let expected = Counts { put: 3, get: 1, head: 1, list: 1, delete: 1, ..Counts::default() };
    assert_eq!(faults.counts(), expected);
}
