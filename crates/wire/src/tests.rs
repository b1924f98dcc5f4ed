//! Golden bytes and hostile input.

use super::*;

#[test]
fn versions_meet_at_the_newest_common_one_or_are_refused() {
    let range = |min, max| VersionRange { min, max };
    assert_eq!(range(1, 4).negotiate(range(2, 3)), Ok(3));
    assert_eq!(range(1, 1).negotiate(range(1, 9)), Ok(1));
    for peer in [range(5, 9), range(0, 0), range(3, 2)] {
        assert!(matches!(range(1, 4).negotiate(peer), Err(DecodeError::Version { .. })), "{peer:?}");
    }
}
