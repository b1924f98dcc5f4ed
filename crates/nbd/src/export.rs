//! What a client is told it connects to.

use farside_blockio::QueueInfo;
use thiserror::Error;

use crate::proto::{self, flag};

const NAME_MAX: usize = 1024;

/// The one export of a socket, under its name and under the empty one.
#[derive(Clone, Debug)]
pub struct Export {
    name: String,
    description: String,
    info: QueueInfo,
    payload_max: u32,
}

/// An export that cannot be offered.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExportError {
    /// Longer than a client must accept.
    #[error("an export's name and description have at most {NAME_MAX} bytes each")]
    TooLong,
    /// The device wants blocks that NBD does not know.
    #[error("a block size of {0} bytes cannot be served: it must be a power of two from 1 to 65536 bytes")]
    BlockSize(u32),
}

impl Export {
    /// Describes a device. `payload_max`: the longest read or write.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn new(name: &str, description: &str, info: QueueInfo, payload_max: u32) -> Result<Self, ExportError> {
        if name.len() > NAME_MAX || description.len() > NAME_MAX {
            return Err(ExportError::TooLong);
        }
        if !info.block_min.is_power_of_two() || info.block_min > 65536 {
            return Err(ExportError::BlockSize(info.block_min));
        }
        Ok(Self { name: name.to_owned(), description: description.to_owned(), info, payload_max })
    }

    /// The device.
    pub fn info(&self) -> &QueueInfo {
        &self.info
    }

    /// The name that is not empty.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// For people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The longest read or write in bytes.
    pub fn payload_max(&self) -> u32 {
        self.payload_max
    }

    /// Whether a client that asks for `name` means this one.
    pub(crate) fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// Transmission flags.
    pub(crate) fn flags(&self, structured: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        if self.info.readonly {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
            if self.info.trims {
                flags |= flag::SEND_TRIM;
            }
        }
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
    }

    /// Minimum, preferred and maximum block size.
    pub(crate) fn block_sizes(&self) -> [u32; 3] {
        // A preferred size below 512 or above the maximum would be a protocol error.
        let preferred = self.info.block_preferred.clamp(self.info.block_min.max(512), self.payload_max);
        [self.info.block_min, preferred, self.payload_max]
    }
}

const _: () = assert!(NAME_MAX <= proto::STRING_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trim_is_offered_where_it_writes_no_zeroes() {
        let info =
            QueueInfo { size: 1 << 20, block_min: 512, block_preferred: 4096, readonly: false, zeroes_fast: false, trims: false };
        let offers = |info| Export::new("disk", "", info, 1 << 20).unwrap().flags(true) & flag::SEND_TRIM != 0;
        assert!(!offers(info) && offers(QueueInfo { trims: true, ..info }));
        assert!(!offers(QueueInfo { trims: true, readonly: true, ..info }));
    }
}
