//! The bytes of a layer: what travels as a stream is what lies in the store (`docs/formats/layer.md`).
//!
//! A layer of one volume is a list of *parts*, files of at most [`PART_BYTES_MAX`]. A part is a header, frames of granule runs
//! (data, zero, unreadable), a footer with the frame table and one keyed digest per data granule, and a trailer through which
//! a reader with random access finds the footer.
//!
//! Owns: [`FrameEncoder`] (runs in, frames out, on any thread), [`PartAssembler`] (frames in, bytes out), [`PartWriter`] (both in
//! one), [`PartVerifier`] (bytes in as they arrive, every one of them checked, with the keys of an encrypted volume or without),
//! [`Footer`] and [`FrameDecoder`] (random access), the digests of granules, footers and layers.
//!
//! Invariants:
//! - Runs of one part ascend and never overlap. A data frame lies inside one region.
//! - No content leaves a decoder before its granule digests were compared.
//! - What is encrypted was compressed and digested before; no content of an encrypted volume is in a part's bytes.
//! - Memory is bounded by the limits below, whatever the bytes claim.
//!
//! Deliberately not here: I/O, which granules belong into a layer, what is newest where (the store's index).

mod digest;
mod format;
mod frames;
mod reader;
mod verify;
mod writer;
mod zero;

#[cfg(test)]
mod sealed_tests;
#[cfg(test)]
mod tests;

pub use digest::{granule_digest, layer_digest};
pub use format::{
    Codec, DATA_GRANULES_MAX, FOOTER_BYTES_MAX, FRAME_GRANULES_MAX, FRAMES_MAX, FrameRef, HEADER_BYTES, PART_BYTES_MAX,
    PartError, PartId, PartSummary, RunKind, TAIL_BYTES_MAX, TRAILER_BYTES,
};
pub use frames::{Compression, Encoder, FrameEncoder, Frames, PushError};
pub use reader::{Footer, FrameDecoder, ReadFooterError, check_stored, read_footer};
pub use verify::{PartVerifier, VERIFIER_BYTES_MAX};
pub use writer::{PartAssembler, PartWriter};
pub use zero::{is_zero, split_zero};
