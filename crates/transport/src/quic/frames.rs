//! Frames on a byte stream: `length (u32 LE) ‖ bytes`.
//!
//! Invariants: reading is cancel-safe (what was read is kept here, not in a future); a length beyond the limit is refused
//! before any memory is taken for it; memory grows only with bytes that really came.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

/// Bytes asked of the stream at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Reads frames.
#[derive(Debug)]
pub(super) struct FrameReader {
    stream: RecvStream,
    buffer: BytesMut,
}

/// Why there is no next frame.
#[derive(Debug)]
pub(super) enum FrameError {
    /// The stream ended between frames, or was reset.
    Ended,
    /// The stream ended inside a frame.
    Torn,
    /// The peer announced more than the limit.
    TooLong(FrameTooLong),
    /// The connection ended.
    Lost(quinn::ConnectionError),
}

/// A length that is refused before any memory is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes; at most {max} are allowed")]
pub struct FrameTooLong {
    /// What the peer announced.
    pub bytes: usize,
    /// What is allowed.
    pub max: usize,
}

impl FrameReader {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// The next frame of at most `bytes_max`. Cancel-safe.
    pub(super) async fn next(&mut self, bytes_max: usize) -> Result<Bytes, FrameError> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, bytes_max).map_err(FrameError::TooLong)? {
                return Ok(frame);
            }
            match self.stream.read_chunk(CHUNK_BYTES, true).await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk.bytes),
                Ok(None) => return Err(if self.buffer.is_empty() { FrameError::Ended } else { FrameError::Torn }),
                Err(ReadError::ConnectionLost(error)) => return Err(FrameError::Lost(error)),
                Err(_) => return Err(FrameError::Ended),
            }
        }
    }
}

/// Cuts the first whole frame out of `buffer`; `None` when there is none yet.
///
/// # Errors
/// When a longer one than `bytes_max` is announced.
pub fn take_frame(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Bytes>, FrameTooLong> {
    let Some(prefix) = buffer.first_chunk::<4>() else { return Ok(None) };
    let bytes = usize::try_from(u32::from_le_bytes(*prefix)).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        return Err(FrameTooLong { bytes, max: bytes_max });
    }
    if buffer.len() < 4 + bytes {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(buffer.split_to(bytes).freeze()))
}

/// Writes one frame. Not cancel-safe: a cut frame ends the use of the stream.
pub(super) async fn write_frame(stream: &mut SendStream, frame: Bytes) -> Result<(), WriteError> {
    let length = u32::try_from(frame.len()).expect("frames are checked to be short");
    if frame.len() <= 1024 {
        // One piece, one allocation: most control frames are small.
        let mut whole = BytesMut::with_capacity(4 + frame.len());
        whole.put_u32_le(length);
        whole.put(frame);
        return stream.write_chunk(whole.freeze()).await;
    }
    stream.write_all_chunks(&mut [Bytes::copy_from_slice(&length.to_le_bytes()), frame]).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        for frame in [&b""[..], b"a", b"hello"] {
            bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            bytes.extend_from_slice(frame);
        }
        assert_eq!(bytes[..5], [0, 0, 0, 0, 1], "golden: little-endian length, then the bytes");
        for step in 1..=bytes.len() {
            let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
            for piece in bytes.chunks(step) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = take_frame(&mut buffer, 5).expect("within limits") {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, [&b""[..], b"a", b"hello"], "cut every {step} bytes");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_at_once() {
        let mut buffer = BytesMut::from(&[6, 0, 0, 0][..]);
        assert_eq!(take_frame(&mut buffer, 5), Err(FrameTooLong { bytes: 6, max: 5 }));
        let mut buffer = BytesMut::from(&[255, 255, 255, 255][..]);
        assert!(take_frame(&mut buffer, 1 << 20).is_err());
    }
}
