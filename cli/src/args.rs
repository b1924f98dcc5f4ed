//! The command line: every word of it, with the help a person reads on a bad day.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use farside_control::{Address, PointRef};
use farside_keys::Keeper;

use crate::branch::BranchCommand;
use crate::cohort::CohortCommand;
use crate::cutover::CutoverArgs;
use crate::demo::DemoArgs;
use crate::failback::FailbackArgs;
use crate::failover::FailoverArgs;
use crate::failure::Failure;
use crate::follow::FollowArgs;
use crate::follower::FollowerCommand;
use crate::job::JobCommand;
use crate::key;
use crate::lock::LockArgs;
use crate::rejoin::RejoinArgs;
use crate::settle::{CommitArgs, RollbackArgs};

pub(crate) use self::point::PointCommand;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed; the message says why and what to do
  2  the command line makes no sense
  3  the daemon could not be reached
  4  refused: a safety rule, a state or this version says no
  5  no such volume, group or point
  6  damage was found: something in the store or on the target is not what it should be
  7  something needs attention: of status --check behind, paused, not connected, a warning; of volume verify
     what could not be read and so was not compared; of doctor what is missing; of point take a point that is not
     application-consistent; of cohort list a cohort that is not cut as it should be
  8  status --check: not protected, or not advancing until somebody acts";

/// Names the socket where `--socket` does not.
pub(crate) const SOCKET_VARIABLE: &str = "FARSIDE_SOCKET";

const TOP_EXAMPLES: &str = "\
Examples:
  farside demo                                  see all of it happen here
  farside pair \"$TOKEN\"                         the line that the gateway printed
  farside volume add data --backing /dev/vg/data
  farside status --watch
  farside point list data
  farside restore data --point -5m --store /srv/farside --to /dev/vg/scratch

On the protected host farside talks to farsided, on the gateway to farside-receiver. Where both
run, farsided is asked; name the other's socket with --socket.
";

/// Keeps a second copy of this host's disks on the far side of a network, seconds behind, and brings any recovery point
/// of them back.
#[derive(Debug, Parser)]
#[command(name = "farside", version, max_term_width = 110, after_long_help = format!("{TOP_EXAMPLES}\n{EXIT_CODES}"), subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Options that every command has.
    #[command(flatten)]
    pub(crate) global: Global,
}

/// Options that every command has.
#[derive(Args, Clone, Debug)]
pub(crate) struct Global {
    /// Print JSON instead of text (one document; with --watch one per line). Errors become JSON on standard error.
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The socket of the daemon to ask [default: /run/farside/farsided.sock, or if there is none
    /// /run/farside/receiver.sock] [env: FARSIDE_SOCKET].
    // Not clap's `env`: a variable that is set would show up in every usage line as if it were required.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole story on this machine: protect, replicate, kill, restore, compare.
    Demo(DemoArgs),

    /// Pair this host with a receiver, using the line that it printed.
    ///
    /// Both sides pin each other's certificate; the token is used up by it. To move to another receiver, pair again: every
    /// volume is then compared with what that receiver has.
    #[command(
        after_long_help = "Examples:\n  on the gateway:   farside-receiver token\n  on this host:     farside pair \"farside1-…\"\n  from a file:      farside pair - < token.txt"
    )]
    Pair {
        /// The token; `-` reads it from standard input, so that it stays out of the shell's history.
        token: String,
    },

    /// Forget the receiver that this host is paired with: its address, its certificate, and the connections to it.
    ///
    /// The volumes are served and tracked on, and nothing is replicated until the host is paired again. What is published stays
    /// at the receiver, which still knows this host: `farside-receiver unpair` there has it forget the host in its turn.
    #[command(
        after_long_help = "It asks first. Exits with 4 if this host is not paired.\n\nExamples:\n  farside unpair\n  farside unpair --yes"
    )]
    Unpair {
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },

    /// Show groups and volumes: state, lag, backlog, rate, time left, the last point, what is wrong and what to do.
    #[command(
        after_long_help = "Examples:\n  farside status --watch\n  farside status --json | jq '.groups[].lag_ms'\n\nLag is the age of what a restore would bring back: it is computed from what was published, on one\nmachine's clock. It shows `?` while it cannot be known."
    )]
    Status {
        /// Print it again every second until interrupted.
        #[arg(long, short)]
        watch: bool,
        /// Say by the exit code how things are: 0 protected, 7 something needs attention, 8 not protected.
        #[arg(long, conflicts_with = "watch")]
        check: bool,
    },

    /// Look at what this host needs to protect its volumes: kernel, modules, limits, devices, configuration.
    ///
    /// Works with and without a running farsided; needs root. Each thing that is missing comes with the one command that
    /// mends it. On a machine that has farside-receiver and no configuration of farsided it looks at the gateway instead.
    #[command(
        after_long_help = "It exits with 0 if nothing is missing, else with 7.\n\nExamples:\n  farside doctor\n  farside doctor --fix\n  farside doctor --json"
    )]
    Doctor {
        /// Mend what can be mended without a decision: load modules, now and at every boot, and end changes of devices that a
        /// crash interrupted.
        #[arg(long)]
        fix: bool,
        /// The configuration, if not /etc/farside/farsided.toml; of a gateway, if not /etc/farside/receiver.toml.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },

    /// Explain a state or a reason that status names: cause, consequence, way out. Works without any daemon.
    #[command(
        after_long_help = "Examples:\n  farside explain                what there is\n  farside explain forked\n  farside explain TargetRewound"
    )]
    Explain {
        /// The name, as status or a message gives it.
        name: Option<String>,
    },

    /// Write the man pages into a directory.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },

    /// Write completions for bash, zsh and fish into a directory.
    #[command(hide = true)]
    Completions {
        /// The directory.
        dir: PathBuf,
    },

    /// Have the daemon read its configuration again, and say what became of it.
    ///
    /// An invalid configuration changes nothing, and is named with file, line and key. What only a restart can change is
    /// named, too. A volume that no file has any more stays in service, and is named: `farside volume remove` takes it out.
    /// `systemctl reload` does the same.
    #[command(
        after_long_help = "Examples:\n  farside reload\n  farside reload --socket /run/farside/receiver.sock\n\nExits with 4 if the configuration is not valid; the running one stays. Exits with 1 if something that was\ntaken over did not succeed, such as a volume that cannot be served."
    )]
    Reload,

    /// Print the daemon's metrics, for Prometheus.
    ///
    /// docs/metrics.md names them, with their units.
    #[command(
        after_long_help = "Examples:\n  farside metrics | grep lag\n  farside metrics > /var/lib/prometheus/node-exporter/farside.prom.new &&\n    mv /var/lib/prometheus/node-exporter/farside.prom.new /var/lib/prometheus/node-exporter/farside.prom"
    )]
    Metrics,

    /// Rehearse the bad day: writable clones of a whole group, beside running replication.
    #[command(subcommand)]
    Drill(DrillCommand),

    /// The source is gone: fence it, and bring a point up in its place.
    Failover(FailoverArgs),

    /// A planned move: take a group out of service here, with all of it published.
    Cutover(CutoverArgs),

    /// This host was failed over: bring its disks to what was published since, and take the history back.
    Failback(FailbackArgs),

    /// What the disks of a host that was failed over held, and no point does.
    #[command(subcommand)]
    Branch(BranchCommand),

    /// A failover is for good: its source may not come back.
    Commit(CommitArgs),
    /// This host was failed over: take the history back, with its disks as they are.
    Rollback(RollbackArgs),

    /// Have groups of several hosts cut as one.
    #[command(subcommand)]
    Cohort(CohortCommand),

    /// Keep files and block devices of the gateway equal to a volume's points.
    #[command(subcommand)]
    Follower(FollowerCommand),

    /// Change a consistency group.
    #[command(subcommand)]
    Group(GroupCommand),

    /// Add, list, show, remove, pause, resume, verify, resync or rejoin volumes.
    #[command(subcommand)]
    Volume(VolumeCommand),

    /// Set, show or lift limits, such as the bandwidth that may be used.
    #[command(subcommand)]
    Limit(LimitCommand),

    /// List recovery points, show, pin, unpin or verify one.
    #[command(subcommand)]
    Point(PointCommand),

    /// List everything long that is under way on this machine, and what ends it.
    #[command(subcommand)]
    Job(JobCommand),

    /// Write a volume as it was at a recovery point into a file or onto a device.
    Restore(RestoreArgs),

    /// Look after a store.
    #[command(subcommand)]
    Store(StoreCommand),

    /// Look after the keys of encrypted volumes.
    #[command(subcommand)]
    Key(KeyCommand),

    /// Run farsided in this process (what `farside demo` starts).
    #[command(hide = true)]
    Daemon {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
        /// End when standard input does: with whoever started it.
        #[arg(long)]
        until_stdin_ends: bool,
    },

    /// Run farside-receiver in this process (what `farside demo` starts).
    #[command(hide = true)]
    Receiver {
        /// Its configuration.
        #[arg(long)]
        config: PathBuf,
        /// End when standard input does: with whoever started it.
        #[arg(long)]
        until_stdin_ends: bool,
    },
}

/// `farside group …`
#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Change how often a group is cut, how many points of it are kept, and how fast it is sent.
    #[command(
        group = ArgGroup::new("setting").required(true).multiple(true).args(["epoch", "keep", "span", "grid", "rate", "consistent"]),
        after_long_help = "A point goes only when every volume in it is held by --keep newer points that are not degraded, it is\nolder than --span, and no rule of --grid needs it.\n\nA grid thins points out as they grow old. \"every 1m keep 1d\" cuts time into minutes and keeps one point\nof each, the first sound one, until the minute is a day old. Rules stand in order, from the finest to the\ncoarsest; the least time between two points is --epoch's. With a grid, --span is 0s unless it was set;\nwithout one it is 24h.\n\nAges count in the ledger's time, never by the wall clock: it passes while points or heartbeats are\nrecorded, by two hours at most between two of them. A host that was off for weeks finds its points as it\nleft them, two hours older. A shorter policy gives the rest up at once; a longer one brings nothing back.\n\nExamples:\n  farside group set db --epoch 1s\n  farside group set default --keep 48 --span 7d\n  farside group set scratch --keep 10 --span 0s     by number only\n  farside group set db --epoch 5s --grid \"every 5s keep 10m, every 1m keep 1d, every 1h keep 30d, every 1d keep 1y\"\n  farside group set db --grid none\n  farside group set scratch --rate 20Mbit           within what `farside limit` leaves to all"
    )]
    Set {
        /// The group.
        name: String,
        /// The least time between two cuts, such as 500ms, 1s or 5m.
        #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_epoch_interval)]
        epoch: Option<Duration>,
        /// Keep at least so many points.
        #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
        /// Keep every point at least so long, such as 90m, 24h or 7d; 0s keeps by number only.
        #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_span)]
        span: Option<Duration>,
        /// Of what is older keep so much: "every 1m keep 1d, every 1h keep 30d", or none.
        #[arg(long, value_name = "RULES")]
        grid: Option<farside_control::Grid>,
        /// Send its volumes no faster, such as 20Mbit or 5MiB; none: only the host's limit holds.
        #[arg(long, value_name = "RATE")]
        rate: Option<farside_control::RateLimit>,
        /// Quiesce applications, by the group's hooks, for a point every so long, such as 15m; or none.
        #[arg(long, value_name = "DURATION")]
        consistent: Option<String>,
    },
}

/// `farside limit …`
#[derive(Debug, Subcommand)]
pub(crate) enum LimitCommand {
    /// Set a limit. It holds at once, for what is being sent too, and after a restart.
    ///
    /// Host writes never wait for it: what cannot be sent in time makes the lag grow, and `farside status` says which
    /// rate would be enough. Commands, heartbeats and acknowledgements go on beside it.
    #[command(
        after_long_help = "RATE is in bits of a link (64kbit, 20Mbit, 1Gbit: powers of 1000) or in bytes (5MB, 5MiB), per second.\nIt counts what is sent after compression, without the overhead of packets (about 4 %).\n\nWINDOW is hours of the week in this host's time zone: Mon-Fri 09:00-18:00, Sat,Sun 00:00-24:00; without days,\nof every day; 22:00-06:00 goes on into the next day. Where several are open the one that was set first\nholds; where none is, the rate that was set without --at. The same window again changes its rate.\nA group may have a limit of its own within this one: `farside group set --rate`.\n\nExamples:\n  farside limit set --rate 20Mbit\n  farside limit set --rate 20Mbit --at \"Mon-Fri 09:00-18:00\"      and as fast as it goes otherwise\n  farside limit clear --at \"Mon-Fri 09:00-18:00\"\n  farside limit clear"
    )]
    Set {
        /// All that this host sends.
        #[arg(long, value_name = "RATE")]
        rate: farside_control::Rate,
        /// Only at these hours of the week.
        #[arg(long, value_name = "WINDOW")]
        at: Option<farside_control::Window>,
    },
    /// Show the limits, and what holds now.
    Show,
    /// Lift all limits of this host, or those of a window.
    Clear {
        /// Only what holds at these hours of the week.
        #[arg(long, value_name = "WINDOW")]
        at: Option<farside_control::Window>,
    },
}

/// `--if-absent`.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
pub(crate) enum IfAbsentArg {
    /// Used as it is.
    #[default]
    Bare,
    /// Not used.
    Refuse,
}

/// `farside volume …`
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Serve a block device or file through a tap, and protect it.
    ///
    /// From then on the host must use the tap, never the backing itself: what goes past the tap is not replicated. The
    /// volume is served and tracked at once; its first sync begins as soon as a receiver is paired and reached.
    #[command(after_long_help = "\
Examples:
  farside volume add data --backing /dev/vg/data
  farside volume add home --device /dev/vg/home          # mounted, and not unmounted for it
  farside volume add log --backing /srv/log.img --group db --tap nbd:unix:/run/farside/log.nbd

Then use it:
  mount /dev/farside/data /srv/data
A tap that is a socket needs an NBD client, for example nbdfuse and a loop device:
  nbdfuse /run/farside/log --unix /run/farside/log.nbd &
  losetup --find --show --direct-io=on /run/farside/log/nbd")]
    Add {
        /// Its name: 1 to 64 of a-z A-Z 0-9 . _ -
        name: String,
        /// The block device or regular file that holds the data. Nobody may use it; from then on the tap is used in its place.
        #[arg(long, value_name = "PATH", required_unless_present = "device")]
        backing: Option<PathBuf>,
        /// Instead: a volume of LVM or another device of the device mapper, which may be mounted and stays so. The tap is put
        /// under it.
        #[arg(long, value_name = "PATH", conflicts_with = "backing")]
        device: Option<PathBuf>,
        /// Its consistency group, cut and published as one; made if need be [default: default].
        #[arg(long, value_name = "GROUP")]
        group: Option<String>,
        /// How the host reaches it: ublk, the block device /dev/farside/NAME (needs the kernel's module ublk_drv); nbd-device, the
        /// same more slowly (needs nbd); nbd, which is the socket nbd:unix:/run/farside/NAME.nbd; or nbd:unix:PATH [default: for a
        /// block device the first that the kernel has, otherwise nbd].
        #[arg(long, value_name = "TAP")]
        tap: Option<String>,
        /// What becomes of the disk at a boot at which Farside does not come up: `bare`, it is used as it is, and compared in full
        /// later; `refuse`, it stays hidden, and what is mounted from it is not.
        #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
        if_absent: IfAbsentArg,
    },
    /// List the volumes.
    List,
    /// Show one volume with its counters.
    Show {
        /// The volume.
        name: String,
    },
    /// Stop serving a volume and forget it. Its points stay in the store.
    Remove {
        /// The volume.
        name: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Stop replicating a volume. It is served and tracked as before; survives restarts.
    Pause {
        /// The volume.
        name: String,
    },
    /// Go on replicating a paused volume.
    Resume {
        /// The volume.
        name: String,
    },
    /// Compare the whole volume with what the receiver holds, and send what differs.
    ///
    /// The way out of Forked and TargetRewound, which never resume by themselves: find out first which side has the
    /// history that you want.
    #[command(
        after_long_help = "Examples:\n  farside volume resync data\n  farside volume resync data --accept forked          this host's content wins\n  farside volume resync data --accept rewound         the store lost points; send again\n  farside volume resync data --accept tracking-lost   the state directory can be written again"
    )]
    Resync {
        /// The volume.
        name: String,
        /// What you have understood and accept.
        #[arg(long, value_enum, value_name = "WHAT")]
        accept: Option<AcceptArg>,
    },
    /// Two hosts wrote after a failover: see what either way discards, and say which of them wins.
    Rejoin(RejoinArgs),
    /// Compare the whole volume with what is published, by digests, and mend what differs.
    ///
    /// Replication goes on meanwhile, and so does the host. Regions that were called clean are read and held against the
    /// receiver's digests (4 MiB come for every GiB, so a slow line is enough); one that differs is an error of Farside's:
    /// it is named, sent, and the command exits with 6; where the disk could not be read nothing is known, and it exits with 7.
    /// Regions that changed lately are left to ordinary comparing.
    #[command(
        after_long_help = "Without --detach the command waits and shows how far it is; interrupting it does not stop the verify. A\nlost connection delays it, stopping farsided ends it. Its result stays in `farside volume show NAME`.\n\nExamples:\n  farside volume verify data\n  farside volume verify data --detach; farside volume show data\n  farside volume verify data --json | jq .differing_bytes"
    )]
    Verify {
        /// The volume.
        name: String,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
}

/// `--accept`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AcceptArg {
    /// The ledger's history and this volume's have parted; this volume wins.
    Forked,
    /// The target lost what was published; it is sent again.
    #[value(name = "rewound", alias = "target-rewound")]
    TargetRewound,
    /// Another copy was promoted; this volume takes the history back. What was written to that copy is not taken over: the newest
    /// whole point of it is pinned on the gateway first, or nothing is done. `farside rollback` shows it before, for all of a group.
    Fenced,
    /// Writes may have gone untracked: try now whether the intent map can be written, and compare everything.
    TrackingLost,
}

/// `farside point list`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
TIME is an RFC 3339 time such as 2026-03-01T12:00:00Z, or an age such as -1h by this machine's clock. It is
held against the wall clock of the source at the cut, which may have been put forward or back: the list
is in the order in which points were published.

The newest 50 are shown, and how many there are; --json prints all of them, as one list that can be read
while it comes. However many there are, neither this command nor a daemon holds more than a page of them.

Examples:
  farside point list data
  farside point list db --since -2h --until -1h
  farside point list db --reason upgrade
  farside point list web1/default/data --store /srv/farside --all
  farside point list db --json | jq -r '.[0].id'")]
pub(crate) struct ListArgs {
    /// The volume or group: NAME, SOURCE/NAME, GROUP/NAME or SOURCE/GROUP/NAME.
    #[arg(value_name = "VOLUME|GROUP")]
    pub(crate) of: Address,
    /// Read this store instead of asking a daemon: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Only those cut then or later.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_moment)]
    pub(crate) since: Option<jiff::Timestamp>,
    /// Only those cut then or earlier.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_moment)]
    pub(crate) until: Option<jiff::Timestamp>,
    /// Only pinned ones.
    #[arg(long)]
    pub(crate) pinned: bool,
    /// Only those with a pin whose reason contains this text, capital letters or not.
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// Only those that were verified: see `farside point verify`.
    #[arg(long)]
    pub(crate) verified: bool,
    /// Only those for which applications were quiesced.
    #[arg(long)]
    pub(crate) consistent: bool,
    /// Only those whose title, or what their hooks said, contains this text, capital letters or not.
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
    /// Only those of this cut of several groups: its id, as `farside cohort cuts` and `farside point show` have it.
    #[arg(long, value_name = "ID", conflicts_with = "label", value_parser = parse_cut)]
    pub(crate) cut: Option<String>,
    /// At most so many, the newest.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    pub(crate) all: bool,
}

/// `farside point open`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Nothing is copied before: what is read is fetched from the store, checked against its digest and
decoded when somebody reads it, so a volume of any size is there at once. What the source could not
read is an I/O error there, and so is what the store has lost (256 KiB where a segment is damaged); all
else can be read.

--writable takes writes. They go to a folder beside the socket, or the one that --overlay names, and
never to the store. The folder outlives this command: the same command goes on with it. It belongs
to this one point; remove it to forget what was written. What a client has flushed is kept, whatever
happens.

--hydrate FILE fetches the rest, too, first what clients read: in the same folder (with --writable) or in
FILE.overlay. When everything is there, the folder becomes FILE: a plain image with what was written in
it, which appears whole or not at all. The point stays open, and writes go to that file. Until then the
same command goes on where it was. What cannot be read keeps FILE from appearing.

While a point is open nothing that the store holds is deleted, also of other points: a gateway that
is short of room gets none meanwhile. `farside point close`, Ctrl-C and SIGTERM end it, and so does
--ttl.

--device makes a block device of it at once, and takes that away at the end: not while it is used,
but for --ttl and SIGTERM, after which its users see I/O errors. Otherwise any NBD client will do:

  nbd-client -unix data-42-9f3c2a1b.nbd /dev/nbd0 -b 512 && mount -o ro /dev/nbd0 /mnt
  qemu-img info 'nbd+unix:///data?socket=data-42-9f3c2a1b.nbd'
  nbdcopy 'nbd+unix:///data?socket=data-42-9f3c2a1b.nbd' data.img

Examples:
  farside point open data latest
  farside point open data latest --device                # and: mount -o ro /dev/ublkb0 /mnt
  farside point open data@-1h --store /srv/farside --export nbd:unix:/run/yesterday.nbd
  farside point open web1/data latest --store /srv/farside --writable --ttl 8h
  farside point open data latest --writable --hydrate data.img",
    group(clap::ArgGroup::new("kept").multiple(true)))]
pub(crate) struct OpenArgs {
    /// Which point, of which volume.
    #[command(flatten)]
    pub(crate) which: WhichPoint,
    /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://). On the gateway it is found without.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// What opens it.
    #[command(flatten)]
    pub(crate) key: KeyArg,
    /// Where it is served: nbd:unix:PATH or nbd:PATH, a Unix socket of the user who runs this. By default VOLUME-POINT.nbd in the
    /// current folder.
    #[arg(long, value_name = "nbd:PATH", value_parser = parse_export)]
    pub(crate) export: Option<PathBuf>,
    /// A block device of this machine's kernel over it, as root: by ublk where the kernel has it, else by its NBD client; or as you say.
    #[arg(long, value_name = "BY", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) device: Option<crate::device::By>,
    /// Take writes, and keep them in a folder of their own.
    #[arg(long, group = "kept")]
    pub(crate) writable: bool,
    /// The folder for what is written or filled; made if it is not there. By default the socket's path with .overlay, or the file's that a
    /// read-only point becomes.
    #[arg(long, value_name = "DIRECTORY", requires = "kept")]
    pub(crate) overlay: Option<PathBuf>,
    /// Make it a plain file of its own, in the background: what is read comes out of there as soon as it is there.
    #[arg(long, value_name = "FILE", group = "kept")]
    pub(crate) hydrate: Option<PathBuf>,
    /// Memory for what was read and may be read again.
    #[arg(long, default_value = "256MiB", value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) cache: u64,
    /// End by itself after so long.
    #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_duration)]
    pub(crate) ttl: Option<std::time::Duration>,
    /// End with who started it.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

/// `farside drill …`
#[derive(Debug, Subcommand)]
pub(crate) enum DrillCommand {
    /// Open all volumes of a group, or of a cohort, as they were at a point, to be written; until this command ends.
    Start(DrillStartArgs),
    /// List the drills of this user on this machine, with what an owner that was killed has left.
    List {
        /// Where drills are kept, if not in the usual place.
        #[arg(long, value_name = "DIRECTORY")]
        dir: Option<PathBuf>,
    },
    /// End a drill, and remove what was written in it.
    ///
    /// Refused while a client is connected to one of its devices. What was interrupted is swept.
    #[command(group(ArgGroup::new("which").required(true)))]
    Stop {
        /// As `drill list` names it.
        #[arg(group = "which")]
        id: Option<String>,
        /// All drills of this user on this machine.
        #[arg(long, group = "which")]
        all: bool,
        /// Also while it is in use: its clients see their connection end.
        #[arg(long)]
        force: bool,
        /// Where drills are kept, if not in the usual place.
        #[arg(long, value_name = "DIRECTORY")]
        dir: Option<PathBuf>,
    },
}

/// `farside drill start`.
#[derive(Args, Debug)]
#[command(after_long_help = "\
All volumes of the group are opened, or none; with --cohort those of all its groups, each at its
point of one cut. Replication goes on, and the store is not written to; while the drill lasts
nothing that it holds is deleted. What is written in the drill is gone when it ends.

Examples:
  farside drill start web1/db --plan
  farside drill start web1/db --point -30m --ttl 2h --device
  farside drill start --cohort erp --ttl 1h
  farside drill start web1/db --store /srv/farside --json")]
pub(crate) struct DrillStartArgs {
    /// The group.
    #[arg(required_unless_present = "cohort")]
    pub(crate) group: Option<Address>,
    /// On the gateway: every group of this cohort, each at its point of one cut: the newest that is whole, or `--cut`.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["group", "point", "store"])]
    pub(crate) cohort: Option<String>,
    /// The id of the cut, as `farside cohort cuts NAME` has it.
    #[arg(long, value_name = "ID", requires = "cohort", value_parser = parse_cut)]
    pub(crate) cut: Option<String>,
    /// The point: an id, `latest`, an RFC 3339 time or an age such as -5m.
    #[arg(long, default_value = "latest", allow_hyphen_values = true)]
    pub(crate) point: PointRef,
    /// End by itself after so long.
    #[arg(long, default_value = "2h", value_name = "DURATION", value_parser = farside_control::parse_duration)]
    pub(crate) ttl: Duration,
    /// Block devices of this machine's kernel, as `point open` makes them.
    #[arg(long, value_name = "BY", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) device: Option<crate::device::By>,
    /// Print the steps, and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://). On the gateway it is found without.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// What unwraps the key of encrypted volumes, as `point open` has it.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Where drills are kept, and what is written in them.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) dir: Option<PathBuf>,
}

/// Which point, of what: `POINT --of VOLUME`, or `VOLUME POINT` as other commands have it.
#[derive(Args, Clone, Debug)]
pub(crate) struct WhichPoint {
    /// The point: an id, `latest`, an RFC 3339 time (the newest not later) or an age such as -5m (the newest so old).
    #[arg(value_name = "[VOLUME|GROUP] POINT", allow_hyphen_values = true)]
    first: String,
    #[arg(hide = true, allow_hyphen_values = true, conflicts_with = "of")]
    second: Option<String>,
    /// The volume or group it is a point of; needed unless the point is a whole id, and another way to name it. What reads
    /// the point reads only a volume that is named.
    #[arg(long, value_name = "VOLUME|GROUP")]
    of: Option<Address>,
}

impl WhichPoint {
    /// The point, and of what as far as that was said.
    ///
    /// # Errors
    /// What is neither.
    pub(crate) fn resolve(self) -> Result<(PointRef, Option<Address>), String> {
        let (point, of) = match (self.second, self.of) {
            // As scripts write it: VOLUME@POINT.
            (None, None) if self.first.contains('@') => {
                let (of, point) = self.first.split_once('@').expect("just seen");
                (point.to_owned(), Some(of.parse::<Address>().map_err(|e| format!("`{of}`: {e}"))?))
            }
            (None, of) => (self.first, of),
            (Some(point), _) => {
                let of = self.first.parse::<Address>().map_err(|e| format!("`{}`: {e}", self.first))?;
                (point, Some(of))
            }
        };
        let point = point.parse::<PointRef>().map_err(|e| e.to_string())?;
        Ok((point, of))
    }
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The volume, byte for byte.
    Raw,
    /// An image for QEMU, which holds what is not zeroes.
    Qcow2,
}

impl RestoreArgs {
    /// What is made of the volume.
    pub(crate) fn format(&self) -> ImageFormat {
        let by_name = || match self.to.extension() {
            Some(ending) if ending.eq_ignore_ascii_case("qcow2") => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        };
        self.format.unwrap_or_else(by_name)
    }
}

/// `farside restore`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
The target is written sparsely (zeroes become holes in a file), every granule is checked against its
digest on the way, and the target is flushed before the command succeeds. A target that is too small
is refused; one that is not empty is refused without --force. On the gateway the store is found by
itself; elsewhere name it with --store. Restoring on the protected host, through the connection,
comes in a later version.

POINT is an id, `latest`, an RFC 3339 time (the newest point not later than it) or an age such as
-5m (the newest point at least that old, by this machine's clock).

--resume goes on after a restore that was killed, or brings an older copy of the volume to another
point: what the target holds is compared with the digests of the point, and only what differs is
written, in place. Nothing else is remembered or trusted, so any target will do; what it holds is
lost where it differs. The first 4 MiB are taken away before anything is written and come back last:
until the command has succeeded the target does not look like the volume.

--to FILE.qcow2, or --format qcow2, makes an image for QEMU, through qemu-img (Debian: qemu-utils): what it
reads it fetches from the store itself, so that no raw image is written first. It is always made anew,
gets its name when it is complete, and ends at the first granule that the store has lost.

--to - writes the volume to standard output, from its first byte to its last, zeroes included, and
everything that is said to standard error. What has read it must throw it away unless the command
succeeds.

A degraded point holds runs that the source could not read. It is refused without --allow-degraded;
with it these runs become zeroes and are listed, each with its place (all of them with --json).
--allow-damaged does the same for what the store has lost: all that still has its digest is restored,
the rest becomes zeroes and is listed. Try other points first.

Where a damaged ledger may hide newer points, all but a point's id means the newest that can be seen, and
the command then exits with 6.

Examples:
  farside restore data --point latest --to /var/tmp/data.img
  farside restore data --point latest --to /dev/vg/data --resume
  farside restore data --point latest --to data.qcow2
  farside restore data --point latest --to - | zstd > data.img.zst
  farside restore web1/data --point -5m --store /srv/farside --to /dev/vg/scratch
  farside restore data --point 2026-03-01T12:00:00Z --to /dev/vg/data --force")]
pub(crate) struct RestoreArgs {
    /// The volume: NAME, SOURCE/NAME, GROUP/NAME or SOURCE/GROUP/NAME.
    pub(crate) volume: Address,
    /// Which point of it.
    #[arg(long, value_name = "POINT", allow_hyphen_values = true)]
    pub(crate) point: PointRef,
    /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// What opens it.
    #[command(flatten)]
    pub(crate) key: KeyArg,
    /// The file to make or the block device to fill; `-` is standard output.
    #[arg(long, value_name = "FILE|DEVICE|-", allow_hyphen_values = true)]
    pub(crate) to: PathBuf,
    /// What is made: the volume's bytes, or an image for QEMU [default: by the ending of FILE].
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub(crate) format: Option<ImageFormat>,
    /// Overwrite a target that is not empty.
    #[arg(long, conflicts_with = "resume")]
    pub(crate) force: bool,
    /// Write only where the target differs from the point, in place; also after an attempt that was killed.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Restore a point in which some runs could not be read at the source; they become zeroes.
    #[arg(long)]
    pub(crate) allow_degraded: bool,
    /// Restore what is left where the store itself is damaged; what is lost becomes zeroes.
    #[arg(long)]
    pub(crate) allow_damaged: bool,
}

/// What opens encrypted volumes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct KeyArg {
    /// What unwraps the key of encrypted volumes: file:PATH, passphrase, passphrase:FILE or "command:PROGRAM …".
    ///
    /// `passphrase` is asked for, or taken from FARSIDE_PASSPHRASE. A command is given `unwrap` as its last argument.
    #[arg(long, value_name = "KEY")]
    key: Option<Keeper>,
}

impl KeyArg {
    /// What was named, with its passphrase.
    pub(crate) fn keeper(&self) -> Result<Option<Keeper>, Failure> {
        self.key.clone().map(|keeper| key::with_passphrase(keeper, "Passphrase: ")).transpose()
    }

    /// Whether anything was named.
    pub(crate) fn is_given(&self) -> bool {
        self.key.is_some()
    }
}

/// `farside key …`.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum KeyCommand {
    /// Make a key file: 32 random bytes that unwrap the key of a group.
    ///
    /// It is named as `key = "file:FILE"` of a group whose volumes are encrypted, and as --key file:FILE wherever such volumes are
    /// read. Who has it and the store can read everything; without it, or another wrapping, nobody can.
    #[command(after_long_help = "Example:\n  farside key new /etc/farside/db.key")]
    New {
        /// The file to make.
        file: PathBuf,
    },
    /// List the wrapped keys of a store's groups, or of a folder, and the volumes that are encrypted with them.
    #[command(after_long_help = "\
Examples:
  farside key list /srv/farside
  farside key list s3://points/site-1 --of web1/db
  farside key list /var/lib/farside/keys/db           what farsided has of group db")]
    List {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://); or a folder of wrapped keys.
        url: String,
        /// Only of this group: SOURCE/GROUP.
        #[arg(long, value_name = "SOURCE/GROUP")]
        of: Option<Address>,
    },
    /// Copy the wrapped keys of a group from a store into a folder: for a host that is built anew, or that stands in for another one.
    ///
    /// What is wrapped opens nothing without the file, passphrase or program that it is wrapped with.
    #[command(after_long_help = "\
Example:
  farside key copy /srv/farside --of web1/db --to /var/lib/farside/keys/db      then give farsided the same `key`")]
    Copy {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        url: String,
        /// Of which group, if there are several: SOURCE/GROUP.
        #[arg(long, value_name = "SOURCE/GROUP")]
        of: Option<Address>,
        /// The folder: of farsided it is keys/GROUP in its state directory.
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Wrap a group's key once more: for another passphrase, file or program. No data is written again.
    ///
    /// The wrappings that there are stay, and who once had the key keeps it. To take a wrapping away, delete its file on the host, if there is one (it would come to the store again), then its object keys/N in the
    /// group's folder of the store, after another one was tried.
    #[command(after_long_help = "\
A folder is what farsided has of a group, in its state directory. It hands the gateway all that lie there when it
connects, so wrapping there is enough. Restart farsided after changing `key` of the group.

A new passphrase (--with passphrase) is asked for twice, or taken from FARSIDE_NEW_PASSPHRASE. Where --key is
no passphrase that is asked for, FARSIDE_PASSPHRASE names it as well; where it is, FARSIDE_PASSPHRASE is the old one.

Examples:
  farside key wrap /srv/farside --of web1/db --key file:/etc/farside/db.key --with passphrase
  farside key wrap /var/lib/farside/keys/db --key file:/etc/farside/db.key --with file:/etc/farside/db2.key")]
    Wrap {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://); or a folder of wrapped keys.
        url: String,
        /// Of which group, if there are several: SOURCE/GROUP.
        #[arg(long, value_name = "SOURCE/GROUP")]
        of: Option<Address>,
        /// What unwraps the key now.
        #[arg(long, value_name = "KEY")]
        key: Keeper,
        /// What is to unwrap it as well.
        #[arg(long, value_name = "KEY")]
        with: Keeper,
    },
}

/// `farside store recover`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
Without --to the volumes are listed: how many points there are of each, the oldest and the newest. What cannot be
seen, or lacks its description or its ledger, is named (exit code 6). With it encrypted volumes that no --key opens
are left out and named; the command exits with 4, if nothing else is wrong.
With it each becomes a file DIRECTORY/SOURCE/GROUP/VOLUME.img, sparse, every granule checked. Of a
group one point is taken for all its volumes, so that what was written together comes back together;
a volume that had left the group by then comes from the newest point that has it.

A volume that cannot be restored from that point is named, the others go on, and the command exits
with 6 (with 1 if all that is wrong is that a file could not be read); an older point is taken only if
--point says so. What was killed or found no space goes on with the same command; files that are
complete stay as they are. The restored files can be attached to virtual machines as raw disks, or
written to devices: farside restore does that directly.
A bucket's keys come from the environment, as for every --store (see farside store init --help).

Examples:
  farside store recover s3://points/site-1
  farside store recover s3://points/site-1 --to /srv/recovered
  farside store recover /mnt/usb/farside --to /srv/recovered --only web1/default --point -2h
  farside store recover /srv/farside --to /srv/recovered --key file:web1.key --key file:db1.key")]
pub(crate) struct RecoverArgs {
    /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
    pub(crate) url: String,
    /// The directory to restore into.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) to: Option<PathBuf>,
    /// What unwraps the keys of encrypted volumes, as in `farside restore`. May be repeated: each is opened by whichever fits.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Vec<Keeper>,
    /// Only these: SOURCE/GROUP, or a volume as in `farside restore`. May be repeated.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) only: Vec<Address>,
    /// Which point: `latest`, an RFC 3339 time, or an age such as -5m.
    #[arg(long, value_name = "POINT", default_value = "latest", allow_hyphen_values = true)]
    pub(crate) point: PointRef,
    /// Restore points in which some runs could not be read at the source; they become zeroes.
    #[arg(long)]
    pub(crate) allow_degraded: bool,
    /// Restore what is left where the store itself is damaged; what is lost becomes zeroes.
    #[arg(long)]
    pub(crate) allow_damaged: bool,
}

/// `farside store cost`.
#[derive(Args, Clone, Debug)]
#[command(after_long_help = "\
A model of how things are once points have been kept for as long as --keep says. Requests are counted as this
version makes them: for each point a PUT for each part (64 MiB at most, and one for each volume), for a publication
one for the records of its points, for what retention gives up one more, and what writers and readers look at beside. A part is
stored as long as one of its 4 KiB granules is needed by a point that is kept, since nothing is
compacted yet; writes are taken to fall anywhere in the working set. --publish-every is how long points wait for others,
as publish_every in receiver.toml.

With --store, how much changes, the size and the volumes are those of the newest points there; what is said
with --churn and --size comes before that.

Prices come from a table that is built in and says of which date it is. They differ by region and change:
check them. A table to edit is in /usr/share/doc/farside/examples/prices.toml.

Examples:
  farside store cost --churn 20GiB/d --size 500GiB --every 5s --keep \"every 5s keep 10m, every 1m keep 1d, every 1h keep 30d\"
  farside store cost --churn 20GiB/d --size 500GiB --every 5s --publish-every 1m --keep \"every 1m keep 30d\" --restores 1
  farside store cost --store s3://points/site-1 --of web1/db --every 5s --keep \"every 1m keep 1d\" --prices ours.toml --json")]
pub(crate) struct CostArgs {
    /// Take churn, size and volumes from this store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Only of this volume or group in it.
    #[arg(long, value_name = "VOLUME|GROUP", requires = "store")]
    pub(crate) of: Option<Address>,
    /// What the volumes change: 20GiB/d, 500MiB/h, 1MiB/s.
    #[arg(long, value_name = "BYTES/TIME", value_parser = crate::cost::parse_churn)]
    pub(crate) churn: Option<crate::cost::Churn>,
    /// What the volumes hold.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) size: Option<u64>,
    /// Of it, what is written again and again [default: all of it].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) working_set: Option<u64>,
    /// How much of what changed is stored after compression, in percent.
    #[arg(long = "stored", value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) stored_percent: u32,
    /// How many volumes change.
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) volumes: u32,
    /// The time between two points.
    #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_epoch_interval)]
    pub(crate) every: Duration,
    /// The time between two publications [default: 30s, or that between two points if it is longer].
    #[arg(long, value_name = "DURATION", value_parser = farside_control::parse_epoch_interval)]
    pub(crate) publish_every: Option<Duration>,
    /// At most so many write requests, as publish_budget in receiver.toml: "2000 per day". Publications are as far apart as that takes.
    #[arg(long, value_name = "REQUESTS")]
    pub(crate) publish_budget: Option<farside_receiver::PublishBudget>,
    /// Which points are kept: "every 5s keep 10m, every 1m keep 1d".
    #[arg(long, value_name = "RULES")]
    pub(crate) keep: farside_control::Grid,
    /// So many times in a month all of it is restored from elsewhere.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) restores: u32,
    /// A table of prices.
    #[arg(long, value_name = "FILE")]
    pub(crate) prices: Option<PathBuf>,
}

/// `farside store …`
#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Make a store in a directory or a bucket; one that is there is left as it is.
    ///
    /// farside-receiver does this by itself for the store of its configuration. A bucket is tried first: of several who create
    /// an object at once exactly one must succeed (`If-None-Match: *`), or two gateways could both believe that a recovery
    /// point is theirs. A service that does not hold this is refused.
    #[command(after_long_help = "\
A bucket must exist. What lets us in comes from the service's own environment variables
(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AZURE_STORAGE_ACCOUNT_NAME and …_KEY,
GOOGLE_SERVICE_ACCOUNT), from the machine's metadata, or from a file of NAME=VALUE lines that
FARSIDE_STORE_CREDENTIALS names; never from the address. After `?` an address may say endpoint,
region, account_name, virtual_hosted_style_request, allow_http, skip_signature and checksum=none (for
a service that refuses uploads with one). What only reads takes as_of=2026-11-28T22:00:00Z there,
too: an s3:// bucket that keeps versions as it was at that moment, whatever was deleted or overwritten
since; and lock=NAME: what `farside store lock` locked.

Examples:
  farside store init /srv/farside
  farside store init s3://points/site-1
  farside store init 's3://points?endpoint=https://ceph.example:7480&region=default'")]
    Init {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        url: String,
    },
    /// List what a store holds, and restore all of it: on a machine that never saw Farside.
    ///
    /// Needs the store and nothing else: no daemon, no configuration, no cache.
    Recover(RecoverArgs),
    /// Keep a file or a block device equal to a volume's points: on a machine that has only the store, such as a second site.
    Follow(FollowArgs),
    /// Say what a store in a bucket asks of the service in a month, what it holds, and what that costs.
    Cost(CostArgs),
    /// Verify a store: every digest, every reference, orphans, the dead ratio. Changes nothing; may run beside a receiver.
    #[command(
        after_long_help = "Exits with 6 if anything is damaged, wrapped keys too, and names it by volume, point and region; with 4 if nothing is, and the keys that were given (--key) do not together open all that is encrypted; with 1 if all that is wrong is that not everything could be read.\n\nExamples:\n  farside store check /srv/farside\n  farside store check file:///srv/farside --json"
    )]
    Check {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        url: String,
        /// What unwraps the keys of encrypted volumes, as in `farside restore`. May be repeated: each is opened by whichever fits.
        #[arg(long, value_name = "KEY")]
        key: Vec<Keeper>,
    },
    /// Lock all that a recovery point needs, in a bucket with S3's Object Lock: nobody who has the gateway's keys takes it away.
    Lock(LockArgs),
    /// List the locks of a store in a bucket.
    Locks {
        /// The store: s3://BUCKET/PREFIX.
        url: String,
    },
    /// End a lock; what other locks have as well stays locked.
    #[command(after_long_help = "Example:\n  farside store unlock s3://points/site-1 00112233445566778899aabbccddeeff")]
    Unlock {
        /// The store: s3://BUCKET/PREFIX.
        url: String,
        /// Its name: 32 hex digits.
        lock: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Give up a ledger record that cannot be used any more, so that its group goes on.
    ///
    /// A group whose ledger holds a torn record takes nothing, prunes nothing and sweeps nothing, and its points after the
    /// record cannot be seen. If a copy of the store has the file, put that back instead: nothing is lost then. This command
    /// is for when there is none: it puts a void record beside the torn one, which stays where it is.
    #[command(after_long_help = "\
It first says, by name, which records it would void and what was published by them, and asks. A
record is mended, not voided, where what it said is known: by a later record that repeats it, as
the next one mostly does, or because only one bit has flipped, by its digest. Points before the
torn record are not touched. The source then finds that the store lost what it saw published
(TargetRewound) and waits for `farside volume resync NAME --accept rewound`, which compares and
sends what differs.

Stop farside-receiver first; it holds the store's lock. Exits with 0 when every ledger is whole.

Examples:
  systemctl stop farside-receiver
  farside store repair /srv/farside
  farside store repair /srv/farside --group web1/db --yes
  systemctl start farside-receiver")]
    Repair {
        /// The store: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        url: String,
        /// Only this group.
        #[arg(long, value_name = "SOURCE/GROUP")]
        group: Option<Address>,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

/// A time as a point is named by it.
fn parse_moment(text: &str) -> Result<jiff::Timestamp, String> {
    match text.parse() {
        Ok(PointRef::At(at)) => Ok(at),
        Ok(PointRef::Ago(age)) => jiff::Timestamp::now().checked_sub(age).map_err(|_| format!("`{text}` is too long ago")),
        _ => Err(format!("`{text}` is no time: use an RFC 3339 time such as 2026-03-01T12:00:00Z, or an age such as -5m or -1d")),
    }
}

/// The id of a cut of several groups.
pub(crate) fn parse_cut(text: &str) -> Result<String, String> {
    match text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("`{text}` is no id of a cut: 32 hex digits, as `farside cohort cuts` has them")),
    }
}

fn parse_export(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("nbd:").map(|path| path.strip_prefix("unix:").unwrap_or(path));
    path.filter(|path| !path.is_empty()).map(PathBuf::from).ok_or_else(|| "it is nbd:unix:PATH, the path of a socket".to_owned())
}

/// `1GiB`, `512M`, `4096`: powers of 1024 for K, M, G, T and KiB…; powers of 1000 for KB, MB, GB, TB.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: use for example 512MiB or 1GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let count: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[digits..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    count.checked_mul(unit).ok_or_else(wrong)
}

mod point;
#[cfg(test)]
mod tests;
