//! The bytes that we exchange with the kernel's ublk driver, as its `include/uapi/linux/ublk_cmd.h` lays them out.
//!
//! Written by hand and not generated, so that a build needs no C headers and no libclang. Everything is encoded to and decoded from
//! byte arrays at stated offsets: nothing here depends on how Rust lays out a struct. Invariant: what the kernel says is
//! decoded, never trusted to be in range. All numbers are in the machine's own byte order.

/// `/dev/ublk-control` commands, as the ioctl encoding of `UBLK_U_CMD_*` (`struct ublksrv_ctrl_cmd` has 32 bytes).
pub(crate) mod control {
    const fn read(number: u32) -> u32 {
        2 << 30 | (super::CONTROL_BYTES as u32) << 16 | (b'u' as u32) << 8 | number
    }

    const fn read_write(number: u32) -> u32 {
        read(number) | 1 << 30
    }

    pub(crate) const GET_DEV_INFO: u32 = read(0x02);
    pub(crate) const ADD_DEV: u32 = read_write(0x04);
    pub(crate) const DEL_DEV: u32 = read_write(0x05);
    pub(crate) const START_DEV: u32 = read_write(0x06);
    pub(crate) const STOP_DEV: u32 = read_write(0x07);
    pub(crate) const SET_PARAMS: u32 = read_write(0x08);
    pub(crate) const GET_PARAMS: u32 = read(0x09);
    pub(crate) const START_USER_RECOVERY: u32 = read_write(0x10);
    pub(crate) const END_USER_RECOVERY: u32 = read_write(0x11);
    pub(crate) const GET_FEATURES: u32 = read(0x13);
    pub(crate) const DEL_DEV_ASYNC: u32 = read(0x14);
    pub(crate) const UPDATE_SIZE: u32 = read_write(0x15);
}

/// `/dev/ublkcN` commands, as the ioctl encoding of `UBLK_U_IO_*` (`struct ublksrv_io_cmd` has 16 bytes).
pub(crate) mod io {
    const fn read_write(number: u32) -> u32 {
        3 << 30 | (super::IO_BYTES as u32) << 16 | (b'u' as u32) << 8 | number
    }

    pub(crate) const FETCH: u32 = read_write(0x20);
    pub(crate) const COMMIT_AND_FETCH: u32 = read_write(0x21);
}

/// Bits of `GET_FEATURES` and of a device's flags.
pub mod feature {
    /// A device outlives its server, and waits for the next one.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// The next one gets again what the dead one had not answered.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Commands are numbered as ioctls are.
    pub const CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// The server moves data with pread and pwrite.
    pub const USER_COPY: u64 = 1 << 7;
    /// Pages are registered by commands of their own.
    pub const SUPPORT_ZERO_COPY: u64 = 1;
    /// A device may grow while it is used.
    pub const UPDATE_SIZE: u64 = 1 << 10;
    /// A request's pages are registered as a fixed buffer of the server's ring: no copy.
    pub const AUTO_BUF_REG: u64 = 1 << 11;
    /// Each tag may have a thread of its own.
    pub const PER_IO_DAEMON: u64 = 1 << 13;
    /// Pages may be registered in any ring; what matters: a driver that has it waits for a dead server's registrations.
    pub const BUF_REG_OFF_DAEMON: u64 = 1 << 14;
    /// Whether the kernel looks for partitions can be said, and it does so without the device's lock.
    pub const NO_AUTO_PART_SCAN: u64 = 1 << 18;
}

/// Of `struct ublksrv_ctrl_cmd`.
pub(crate) const CONTROL_BYTES: usize = 32;
/// Of `struct ublksrv_io_cmd`.
pub(crate) const IO_BYTES: usize = 16;
/// Of `struct ublksrv_io_desc`.
pub(crate) const DESCRIPTOR_BYTES: usize = 24;
/// A queue's descriptors begin at this many bytes × its number in the mapping of `/dev/ublkcN`, whatever its depth.
pub(crate) const DESCRIPTORS_STRIDE: u64 = (DEPTH_MAX as u64 * DESCRIPTOR_BYTES as u64).next_multiple_of(4096);
/// `UBLK_MAX_QUEUE_DEPTH`.
pub(crate) const DEPTH_MAX: u16 = 4096;
/// In which the kernel counts, whatever the device's block size.
pub(crate) const SECTOR: u64 = 512;
/// `UBLK_IO_RES_OK`; any other result of a command is an errno.
pub(crate) const RESULT_OK: u32 = 0;
/// "No device of that number", "the kernel chooses".
pub(crate) const ANY_DEVICE: u32 = u32::MAX;

fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of that length")
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// `struct ublksrv_ctrl_cmd`, at the start of the 80 bytes that a big submission carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ControlCommand {
    pub(crate) device: u32,
    /// Of what `address` points at.
    pub(crate) len: u16,
    pub(crate) address: u64,
    pub(crate) data: u64,
}

impl ControlCommand {
    pub(crate) fn encode(self) -> [u8; 80] {
        let mut bytes = [0; 80];
        put(&mut bytes, 0, self.device.to_ne_bytes());
        put(&mut bytes, 4, u16::MAX.to_ne_bytes()); // no queue
        put(&mut bytes, 6, self.len.to_ne_bytes());
        put(&mut bytes, 8, self.address.to_ne_bytes());
        put(&mut bytes, 16, self.data.to_ne_bytes());
        bytes
    }
}

/// `UBLK_S_DEV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started yet, or stopped: there is no block device.
    Dead,
    /// Served.
    Live,
    /// Its server is gone; requests wait for the next one.
    Quiesced,
    /// Its server is gone; requests fail.
    FailIo,
    /// Something that came later than this program.
    Other(u16),
}

impl DeviceState {
    fn of(state: u16) -> Self {
        match state {
            0 => Self::Dead,
            1 => Self::Live,
            2 => Self::Quiesced,
            3 => Self::FailIo,
            other => Self::Other(other),
        }
    }
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Queues, each with its own thread.
    pub queues: u16,
    /// Requests that each may hold.
    pub depth: u16,
    /// Where it is in its life.
    pub state: DeviceState,
    /// The longest request.
    pub io_bytes_max: u32,
    /// N of `/dev/ublkbN`.
    pub id: u32,
    /// Of its server.
    pub pid: i32,
    /// [`feature`] bits that it was made with.
    pub flags: u64,
    /// Ours: the kernel keeps it and gives it back. Says whose device this is.
    pub token: u64,
}

impl DeviceInfo {
    pub(crate) const BYTES: usize = 64;

    /// For `ADD_DEV`; the state is the kernel's.
    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, self.queues.to_ne_bytes());
        put(&mut bytes, 2, self.depth.to_ne_bytes());
        put(&mut bytes, 8, self.io_bytes_max.to_ne_bytes());
        put(&mut bytes, 12, self.id.to_ne_bytes());
        put(&mut bytes, 16, self.pid.to_ne_bytes());
        put(&mut bytes, 24, self.flags.to_ne_bytes());
        put(&mut bytes, 32, self.token.to_ne_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            queues: u16::from_ne_bytes(get(bytes, 0)),
            depth: u16::from_ne_bytes(get(bytes, 2)),
            state: DeviceState::of(u16::from_ne_bytes(get(bytes, 4))),
            io_bytes_max: u32::from_ne_bytes(get(bytes, 8)),
            id: u32::from_ne_bytes(get(bytes, 12)),
            pid: i32::from_ne_bytes(get(bytes, 16)),
            flags: u64::from_ne_bytes(get(bytes, 24)),
            token: u64::from_ne_bytes(get(bytes, 32)),
        }
    }
}

/// What of `struct ublk_params` we use: the header, `basic`, `discard` and `dma`. Other parts are the kernel's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Params {
    pub(crate) attributes: u32,
    pub(crate) logical_shift: u8,
    pub(crate) physical_shift: u8,
    pub(crate) io_opt_shift: u8,
    pub(crate) io_min_shift: u8,
    pub(crate) sectors_max: u32,
    pub(crate) device_sectors: u64,
    pub(crate) discard: Option<Discard>,
    /// What the memory of requests is aligned to, in bytes, where no copy aligns it; a power of two up to a page.
    pub(crate) memory_align: Option<u32>,
}

/// `struct ublk_param_discard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Discard {
    pub(crate) alignment: u32,
    pub(crate) granularity: u32,
    pub(crate) sectors_max: u32,
    pub(crate) zeroes_sectors_max: u32,
}

/// `UBLK_ATTR_*`.
pub(crate) mod attribute {
    pub(crate) const READ_ONLY: u32 = 1 << 0;
    pub(crate) const ROTATIONAL: u32 = 1 << 1;
    pub(crate) const VOLATILE_CACHE: u32 = 1 << 2;
    pub(crate) const FUA: u32 = 1 << 3;
}

impl Params {
    /// Up to the end of `dma`, rounded to the structure's alignment. A kernel of before that takes what it knows.
    pub(crate) const BYTES: usize = 120;
    const TYPE_BASIC: u32 = 1 << 0;
    const TYPE_DISCARD: u32 = 1 << 1;
    const TYPE_DMA_ALIGN: u32 = 1 << 4;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = Self::request();
        let discard = if self.discard.is_some() { Self::TYPE_DISCARD } else { 0 };
        let types = Self::TYPE_BASIC | discard | if self.memory_align.is_some() { Self::TYPE_DMA_ALIGN } else { 0 };
        put(&mut bytes, 4, types.to_ne_bytes());
        put(&mut bytes, 8, self.attributes.to_ne_bytes());
        put(&mut bytes, 12, [self.logical_shift, self.physical_shift, self.io_opt_shift, self.io_min_shift]);
        put(&mut bytes, 16, self.sectors_max.to_ne_bytes());
        put(&mut bytes, 24, self.device_sectors.to_ne_bytes());
        if let Some(discard) = self.discard {
            put(&mut bytes, 40, discard.alignment.to_ne_bytes());
            put(&mut bytes, 44, discard.granularity.to_ne_bytes());
            put(&mut bytes, 48, discard.sectors_max.to_ne_bytes());
            put(&mut bytes, 52, discard.zeroes_sectors_max.to_ne_bytes());
            put(&mut bytes, 56, 1u16.to_ne_bytes()); // one range in a request
        }
        if let Some(align) = self.memory_align {
            put(&mut bytes, 108, (align - 1).to_ne_bytes()); // a mask
        }
        bytes
    }

    /// What `GET_PARAMS` is asked with.
    pub(crate) fn request() -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        put(&mut bytes, 0, (Self::BYTES as u32).to_ne_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        let types = u32::from_ne_bytes(get(bytes, 4));
        let [logical_shift, physical_shift, io_opt_shift, io_min_shift] = get(bytes, 12);
        Self {
            attributes: u32::from_ne_bytes(get(bytes, 8)),
            logical_shift,
            physical_shift,
            io_opt_shift,
            io_min_shift,
            sectors_max: u32::from_ne_bytes(get(bytes, 16)),
            device_sectors: u64::from_ne_bytes(get(bytes, 24)),
            discard: (types & Self::TYPE_DISCARD != 0).then(|| Discard {
                alignment: u32::from_ne_bytes(get(bytes, 40)),
                granularity: u32::from_ne_bytes(get(bytes, 44)),
                sectors_max: u32::from_ne_bytes(get(bytes, 48)),
                zeroes_sectors_max: u32::from_ne_bytes(get(bytes, 52)),
            }),
            memory_align: (types & Self::TYPE_DMA_ALIGN != 0).then(|| u32::from_ne_bytes(get(bytes, 108)).saturating_add(1)),
        }
    }
}

/// `struct ublk_auto_buf_reg`, as it lies in the address of a submission: the pages of the tag's next request are registered in
/// this slot of the ring's table; where that fails, the request comes all the same ([`Descriptor::unregistered`]).
pub(crate) const fn register_in(slot: u16) -> u64 {
    const FALLBACK: u64 = 1 << 0;
    slot as u64 | FALLBACK << 16
}

/// Where the data of a tag's request lies in `/dev/ublkcN`, for reading a write's and writing a read's (`USER_COPY`).
pub(crate) const fn data_offset(queue: u16, tag: u16) -> u64 {
    const BASE: u64 = 0x8000_0000;
    BASE + ((queue as u64) << 41) + ((tag as u64) << 25)
}

/// `struct ublksrv_io_cmd`: one tag's command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoCommand {
    pub(crate) queue: u16,
    pub(crate) tag: u16,
    /// Bytes, or an errno below zero; of a commit.
    pub(crate) result: i32,
    /// The tag's buffer: where a read's data is taken from, and where the next write's data goes.
    pub(crate) address: u64,
}

impl IoCommand {
    pub(crate) fn encode(self) -> [u8; IO_BYTES] {
        let mut bytes = [0; IO_BYTES];
        put(&mut bytes, 0, self.queue.to_ne_bytes());
        put(&mut bytes, 2, self.tag.to_ne_bytes());
        put(&mut bytes, 4, self.result.to_ne_bytes());
        put(&mut bytes, 8, self.address.to_ne_bytes());
        bytes
    }
}

/// `UBLK_IO_OP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
    /// Of zoned devices, or something that came later than this program.
    Other(u8),
}

/// `struct ublksrv_io_desc`: what a tag's request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) operation: Operation,
    pub(crate) fua: bool,
    /// Of `WriteZeroes`: the space must stay allocated.
    pub(crate) no_unmap: bool,
    /// Its pages could not be registered, as they should have been.
    pub(crate) unregistered: bool,
    pub(crate) sectors: u32,
    pub(crate) first_sector: u64,
}

impl Descriptor {
    pub(crate) fn decode(bytes: &[u8; DESCRIPTOR_BYTES]) -> Self {
        let op_flags = u32::from_ne_bytes(get(bytes, 0));
        let operation = match op_flags as u8 {
            0 => Operation::Read,
            1 => Operation::Write,
            2 => Operation::Flush,
            3 => Operation::Discard,
            5 => Operation::WriteZeroes,
            other => Operation::Other(other),
        };
        Self {
            operation,
            fua: op_flags & 1 << 13 != 0,
            no_unmap: op_flags & 1 << 15 != 0,
            unregistered: op_flags & 1 << 17 != 0,
            sectors: u32::from_ne_bytes(get(bytes, 4)),
            first_sector: u64::from_ne_bytes(get(bytes, 8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_numbers_of_the_kernels_header() {
        assert_eq!([control::GET_DEV_INFO, control::GET_PARAMS, control::GET_FEATURES], [0x8020_7502, 0x8020_7509, 0x8020_7513]);
        assert_eq!([control::ADD_DEV, control::DEL_DEV], [0xc020_7504, 0xc020_7505]);
        assert_eq!([control::START_DEV, control::STOP_DEV, control::SET_PARAMS], [0xc020_7506, 0xc020_7507, 0xc020_7508]);
        assert_eq!([control::START_USER_RECOVERY, control::END_USER_RECOVERY], [0xc020_7510, 0xc020_7511]);
        assert_eq!([control::DEL_DEV_ASYNC, control::UPDATE_SIZE], [0x8020_7514, 0xc020_7515]);
        assert_eq!([io::FETCH, io::COMMIT_AND_FETCH], [0xc010_7520, 0xc010_7521]);
        assert_eq!(DESCRIPTORS_STRIDE, 98_304);
    }

    #[test]
    fn every_field_lies_where_the_kernel_looks_for_it() {
        let at = |bytes: &[u8], from: usize, len: usize| {
            bytes[from..from + len].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        let command = ControlCommand { device: 3, len: 64, address: 0x1122_3344_5566_7788, data: 99 }.encode();
        assert_eq!([at(&command, 0, 4), at(&command, 4, 2), at(&command, 6, 2)], [3, 0xffff, 64]);
        assert_eq!([at(&command, 8, 8), at(&command, 16, 8)], [0x1122_3344_5566_7788, 99]);
        assert!(command[24..].iter().all(|b| *b == 0));

        let info = DeviceInfo {
            queues: 2,
            depth: 128,
            state: DeviceState::Dead,
            io_bytes_max: 1 << 19,
            id: 7,
            pid: -1,
            flags: 0x58,
            token: 0xfeed,
        };
        let mut bytes = info.encode();
        assert_eq!([at(&bytes, 0, 2), at(&bytes, 2, 2), at(&bytes, 8, 4), at(&bytes, 12, 4)], [2, 128, 1 << 19, 7]);
        assert_eq!([at(&bytes, 16, 4), at(&bytes, 24, 8), at(&bytes, 32, 8)], [0xffff_ffff, 0x58, 0xfeed]);
        assert_eq!(DeviceInfo::decode(&bytes), info);
        for (number, state) in
            [(1, DeviceState::Live), (2, DeviceState::Quiesced), (3, DeviceState::FailIo), (9, DeviceState::Other(9))]
        {
            bytes[4] = number;
            assert_eq!(DeviceInfo::decode(&bytes).state, state);
        }

        let discard = Discard { alignment: 1, granularity: 4096, sectors_max: 5, zeroes_sectors_max: 6 };
        let params = Params {
            attributes: attribute::VOLATILE_CACHE | attribute::FUA,
            logical_shift: 9,
            physical_shift: 12,
            io_opt_shift: 16,
            io_min_shift: 13,
            sectors_max: 1024,
            device_sectors: 1 << 33,
            discard: Some(discard),
            memory_align: Some(512),
        };
        let bytes = params.encode();
        assert_eq!([at(&bytes, 0, 4), at(&bytes, 4, 4), at(&bytes, 8, 4)], [120, 0x13, 12]);
        assert_eq!(at(&bytes, 108, 4), 511);
        assert_eq!(bytes[12..16], [9, 12, 16, 13]);
        assert_eq!([at(&bytes, 16, 4), at(&bytes, 24, 8)], [1024, 1 << 33]);
        assert_eq!(
            [at(&bytes, 40, 4), at(&bytes, 44, 4), at(&bytes, 48, 4), at(&bytes, 52, 4), at(&bytes, 56, 2)],
            [1, 4096, 5, 6, 1]
        );
        assert_eq!(Params::decode(&bytes), params);
        let plain = Params { discard: None, memory_align: None, ..params };
        assert_eq!((at(&plain.encode(), 4, 4), Params::decode(&plain.encode())), (1, plain));

        let io = IoCommand { queue: 1, tag: 2, result: -5, address: 0x1000 }.encode();
        assert_eq!([at(&io, 0, 2), at(&io, 2, 2), at(&io, 4, 4), at(&io, 8, 8)], [1, 2, 0xffff_fffb, 0x1000]);
    }

    #[test]
    fn descriptors_say_what_is_asked_for() {
        let descriptor = |op_flags: u32| {
            let mut bytes = [0; DESCRIPTOR_BYTES];
            put(&mut bytes, 0, op_flags.to_ne_bytes());
            put(&mut bytes, 4, 8u32.to_ne_bytes());
            put(&mut bytes, 8, (1u64 << 40).to_ne_bytes());
            Descriptor::decode(&bytes)
        };
        use Operation as O;
        for (number, operation) in
            [(0, O::Read), (1, O::Write), (2, O::Flush), (3, O::Discard), (4, O::Other(4)), (5, O::WriteZeroes)]
        {
            let plain = descriptor(number);
            let wanted =
                Descriptor { operation, fua: false, no_unmap: false, unregistered: false, sectors: 8, first_sector: 1 << 40 };
            assert_eq!(plain, wanted);
        }
        let flags = descriptor(5 | 1 << 13 | 1 << 15);
        assert!(flags.fua && flags.no_unmap && !flags.unregistered && flags.operation == O::WriteZeroes);
        assert!(descriptor(1 | 1 << 17).unregistered);
    }

    #[test]
    fn pages_and_data_are_where_the_kernel_looks_for_them() {
        assert_eq!([register_in(0), register_in(127)], [0x1_0000, 0x1_007f]);
        assert_eq!(
            [data_offset(0, 0), data_offset(0, 3), data_offset(1, 0)],
            [1 << 31, (1 << 31) + (3 << 25), (1 << 31) + (1 << 41)]
        );
    }
}
