//! IOPS and latency of the tap against other NBD servers on the same backing file: idle, replicating, around cuts. All by
//! fio's NBD engine over a Unix socket.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use farside_tests::{Site, VolumeSpec, tool, wait_for};
use serde_json::Value;

use crate::image;
use crate::measure::{drop_caches, installed, stand_aside};
use crate::report::{Report, TapRow};

pub(crate) const BYTES: u64 = 1 << 30;
/// Writes per second of the paced workload: well below what any server here can do, so that latency is not a queue's length.
pub(crate) const PACE: u64 = 2000;

/// A server that ends with its owner.
pub(crate) struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(command: &mut Command, socket: &Path) -> Result<Server> {
    let _ = std::fs::remove_file(socket);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().with_context(|| format!("{command:?}"))?;
    let server = Server(child);
    wait_for("an NBD server", || std::os::unix::net::UnixStream::connect(socket).ok());
    Ok(server)
}

/// `qemu-nbd` on a raw file, past the page cache.
pub(crate) fn qemu_nbd(file: &Path, socket: &Path, readonly: bool) -> Result<Server> {
    let mut command = tool("qemu-nbd");
    command.args(["--persistent", "--shared=0", "--format=raw", "--cache=none", "--aio=io_uring", "--discard=unmap"]);
    command.args(readonly.then_some("--read-only")).arg("--socket").arg(socket).arg(file);
    serve(&mut command, socket)
}

pub(crate) struct Workload {
    name: &'static str,
    args: &'static [&'static str],
}

const FULL: &[Workload] = &[
    Workload { name: "randwrite 4k QD32", args: &["--rw=randwrite", "--bs=4k", "--iodepth=32"] },
    Workload { name: "randread 4k QD32", args: &["--rw=randread", "--bs=4k", "--iodepth=32"] },
    Workload { name: "randwrite 4k QD1", args: &["--rw=randwrite", "--bs=4k", "--iodepth=1"] },
    Workload { name: "write 1M QD8", args: &["--rw=write", "--bs=1m", "--iodepth=8"] },
];
pub(crate) const PACED: Workload = Workload { name: "randwrite 4k paced", args: &["--rw=randwrite", "--bs=4k", "--iodepth=8"] };

pub(crate) fn run(seconds: u64, report: &mut Report) -> Result<()> {
    if !has_nbd_engine() {
        report.left_out("fio with its NBD engine is not installed: nothing about the tap");
        return Ok(());
    }
    let mut site = Site::new(&[VolumeSpec { name: "data".into(), bytes: BYTES, group: "default".into() }], "1s", 4);
    image::fill_noise(&site.backing("data"), BYTES)?;
    let (backing, socket) = (site.backing("data"), site.path("other.nbd"));

    eprintln!("the tap, not replicating …");
    site.start_daemon();
    for workload in FULL {
        measure(workload, "farside, idle", &site.tap("data"), seconds, None, report)?;
    }
    site.daemon.take().expect("it runs").stop();
    if installed("qemu-nbd") {
        eprintln!("qemu-nbd …");
        let _server = qemu_nbd(&backing, &socket, false)?;
        for workload in FULL {
            measure(workload, "qemu-nbd", &socket, seconds, None, report)?;
        }
    } else {
        report.left_out("qemu-nbd is not installed");
    }
    if installed("nbdkit") {
        eprintln!("nbdkit …");
        let mut command = tool("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&socket).arg("file").arg(&backing);
        let _server = serve(&mut command, &socket)?;
        for workload in FULL {
            // Its file plugin goes through the page cache: printed, not compared.
            measure(workload, "nbdkit (page cache)", &socket, seconds, None, report)?;
        }
    } else {
        report.left_out("nbdkit is not installed");
    }
    eprintln!("the tap, replicating …");
    site.start_all();
    site.wait_quiet();
    for workload in FULL {
        measure(workload, "farside, replicating", &site.tap("data"), seconds, None, report)?;
    }
    stand_aside(site.receiver.as_ref().expect("it runs").pid())?;
    for (server, epoch) in [("farside, no cuts", "1h"), ("farside, a cut every 200 ms", "200ms")] {
        eprintln!("{server} …");
        farside_tests::run(site.farside().args(["group", "set", "default", "--epoch", "200ms"]));
        site.wait_quiet();
        farside_tests::run(site.farside().args(["group", "set", "default", "--epoch", epoch]));
        measure(&PACED, server, &site.tap("data"), seconds, Some(PACE), report)?;
    }
    Ok(())
}

pub(crate) fn has_nbd_engine() -> bool {
    tool("fio").arg("--enghelp").output().is_ok_and(|o| String::from_utf8_lossy(&o.stdout).lines().any(|l| l.trim() == "nbd"))
}

fn measure(
    workload: &Workload,
    server: &'static str,
    socket: &Path,
    seconds: u64,
    iops: Option<u64>,
    report: &mut Report,
) -> Result<()> {
    drop_caches();
    report.tapped(fio(workload, server, socket, seconds, iops)?);
    Ok(())
}

/// What fio says of a workload at the export `data` of a server of ours, or at any other one's only one.
pub(crate) fn fio(workload: &Workload, server: &'static str, socket: &Path, seconds: u64, iops: Option<u64>) -> Result<TapRow> {
    let mut command = tool("fio");
    command
        .args(["--name=bench", "--ioengine=nbd", "--output-format=json", "--time_based", "--randrepeat=1", "--norandommap"])
        .arg(format!("--uri=nbd+unix:///{}?socket={}", if server.starts_with("farside") { "data" } else { "" }, socket.display()))
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--size={BYTES}"))
        .args(iops.map(|n| format!("--rate_iops={n}")))
        .args(workload.args);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).context("fio's output")?;
    let job = &json["jobs"][0][if workload.args[0].contains("read") { "read" } else { "write" }];
    let us = |value: &Value| value.as_f64().unwrap_or(0.0) / 1000.0;
    let percentile = |p: &str| us(&job["clat_ns"]["percentile"][p]);
    Ok(TapRow {
        workload: workload.name.to_owned(),
        server,
        iops: job["iops"].as_f64().unwrap_or(0.0),
        mean_us: us(&job["clat_ns"]["mean"]),
        p50_us: percentile("50.000000"),
        p99_us: percentile("99.000000"),
        p999_us: percentile("99.900000"),
        max_us: us(&job["clat_ns"]["max"]),
    })
}
