//! A fuzzer for every decoder of bytes that a peer, a local client or a disk may hand us, on stable Rust and with nothing but
//! this crate: L9, tried instead of argued.
//!
//! Owns the engine ([`engine`]), the mutations ([`mutate`]) and the table of decoders ([`targets`]). Each target has seeds made
//! by the real encoders, findings of the past (`corpus/<target>/`, committed), a *seal* that puts checksums right after a
//! mutation so that what lies behind them is reached, and invariants: no panic, no end of the process, no endless loop, no
//! more memory than the input pays for, and what is accepted reads the same when it was written and read again.
//!
//! Without coverage the engine is led by outcomes: an input that is refused in a new way, or accepted in a new shape, joins
//! the corpus. Deliberately not here: coverage by compiler instrumentation (it would build everything a second time), and
//! decoders of other people's (TLS, HTTP, TOML, JSON, zstd), which are reached through ours only.

pub mod engine;
pub mod mutate;
pub mod runner;
pub mod targets;
