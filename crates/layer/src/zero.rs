//! Finding zeroes fast: content that was read goes through here before anything is digested or compressed.

use std::ops::Range;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|b| b.iter().fold(0, |any, byte| any | byte) == 0) && rest.iter().all(|b| *b == 0)
}

/// Divides content into the longest runs of granules that are all zero or not: (granules from the start of `content`,
/// whether they are zero). The last granule may be short.
///
/// # Panics
/// When `granule_bytes` is 0.
pub fn split_zero(content: &[u8], granule_bytes: usize) -> impl Iterator<Item = (Range<usize>, bool)> {
    let mut granules = content.chunks(granule_bytes).map(is_zero).enumerate().peekable();
    std::iter::from_fn(move || {
        let (start, zero) = granules.next()?;
        let mut end = start + 1;
        while granules.next_if(|(_, z)| *z == zero).is_some() {
            end += 1;
        }
        Some((start..end, zero))
    })
}
