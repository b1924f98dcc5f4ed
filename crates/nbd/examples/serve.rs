//! Serves a file or block device over NBD: `serve DEVICE SOCKET [--read-only]`. Ends at SIGINT or SIGTERM, drained.

use std::path::PathBuf;
use std::process::ExitCode;

use farside_blockio::{FileDevice, OpenOptions, PlainQueue, Waker};
use farside_nbd::{Limits, Listener, Server, SocketOptions};
use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("{error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(device), Some(path)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve DEVICE SOCKET [--read-only]".into());
    };
    let readonly = arguments.next().is_some_and(|a| a == "--read-only");
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;

    let device = FileDevice::open(device, OpenOptions { readonly, ..OpenOptions::at_once() })?;
    println!("{} bytes in blocks of {}", device.size(), device.block_min());
    let listener = Listener::bind(&SocketOptions { path: PathBuf::from(path), group: None })?;
    let (server, handle) = Server::new(listener, "example", "", Limits::default(), Waker::new()?);
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            handle.stop();
        }
    });
    server.run(PlainQueue::new(device)?)?;
    Ok(())
}
