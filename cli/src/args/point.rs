//! The arguments of `farside point`.

use clap::Subcommand;

use super::{KeyArg, ListArgs, OpenArgs, WhichPoint};

/// `farside point …`
#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// List the recovery points of a volume or group, newest first.
    ///
    /// On the protected host the receiver is asked through the connection; on the gateway its socket; with --store no
    /// daemon is needed.
    List(ListArgs),
    /// Make a recovery point of a group now, with its applications quiesced, and wait until it is published.
    Take(crate::take::TakeArgs),
    /// Show one recovery point: its cut, its members, its layers.
    #[command(
        after_long_help = "Examples:\n  farside point show 42-9f3c2a1b\n  farside point show latest --of data\n  farside point show data latest\n  farside point show -5m --of db --store /srv/farside"
    )]
    Show {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// Read this store instead of asking a daemon: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        #[arg(long, value_name = "URL")]
        store: Option<String>,
    },
    /// Keep a recovery point until it is unpinned, whatever the group's retention says.
    ///
    /// A point may have several pins; it is kept while one is left. Pinning again with the same reason changes nothing. Pins
    /// are in the store's ledger, so they outlive the gateway; they are made there, through farside-receiver.
    #[command(after_long_help = "\
Examples:
  farside point pin 42-9f3c2a1b --reason \"before the upgrade\"
  farside point pin latest --of db")]
    Pin {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// Why, for whoever wonders later; at most 1024 bytes.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Withdraw the pins of a recovery point; without any it goes when the group's retention lets it go.
    ///
    /// Those by which the gateway keeps it for a failover, or for a branch of a host, stay without --all: neither is worth
    /// anything without its point. Legal holds stay in any case (`farside point release`). This asks farside-receiver, on the gateway.
    #[command(after_long_help = "Example:\n  farside point unpin 42-9f3c2a1b")]
    Unpin {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// Also those that the gateway holds for itself.
        #[arg(long)]
        all: bool,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Put a recovery point under legal hold: it stays until that very case is released, whatever retention and `unpin --all` say.
    ///
    /// A point may be held for several cases, and stays while one is left; holding it again for the same case changes nothing.
    /// Holds are pins in the store's ledger whose reasons begin with "legal hold", so they outlive the gateway, and
    /// `farside point list GROUP --reason "legal hold"` shows what is held. They are made on the gateway. What somebody who has
    /// the store's own keys may delete is for the store to keep: see operate.md, "Against somebody who has the keys".
    #[command(after_long_help = "\
Examples:
  farside point hold latest --of db --case \"audit 2026-17\"
  farside point hold 42-9f3c2a1b --case \"audit 2026-17\"
  farside point release 42-9f3c2a1b --case \"audit 2026-17\"")]
    Hold {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// For which case: what a release has to name.
        #[arg(long, value_name = "TEXT")]
        case: String,
    },
    /// Release a recovery point from the legal hold of one case; it goes when nothing else keeps it.
    #[command(after_long_help = "Example:\n  farside point release 42-9f3c2a1b --case \"audit 2026-17\"")]
    Release {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// Which case, as it was given to `hold`.
        #[arg(long, value_name = "TEXT")]
        case: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
    /// Read everything that a recovery point needs and check every granule of it; write nothing.
    ///
    /// Each granule is held against the digest that was computed where the source read it, as in a restore. The receiver
    /// does the work while it runs, one point at a time; interrupting this command ends it within a minute. With --store no
    /// daemon is needed, and none is disturbed: any machine that can read the store will do.
    #[command(after_long_help = "\
Damage is named by volume, point and region (4 MiB), with the file of the store that is to blame; the
command then exits with 6. What the source itself could not read is no damage: it is listed, and a
restore of the point wants --allow-degraded.

Examples:
  farside point verify latest --of db                   every volume of the newest point
  farside point verify 42-9f3c2a1b --of web1/db/log     one of its volumes
  farside point verify -1h --of data --store /srv/farside
  farside point verify latest --of db --against-source  on the protected host")]
    Verify {
        /// Which point, of what.
        #[command(flatten)]
        which: WhichPoint,
        /// Read this store instead of asking farside-receiver: a directory, or s3://BUCKET/PREFIX (also az://, gs://).
        #[arg(long, value_name = "URL")]
        store: Option<String>,
        /// What opens it.
        #[command(flatten)]
        key: KeyArg,
        /// On the protected host: compare the newest point with what the volumes hold, by digests only.
        ///
        /// As `farside volume verify` for every volume of the group: 4 MiB come over the line for every GiB. What changed since the
        /// point is sent as always, and the gateway puts it on record of its newest point, or of the next one.
        #[arg(long, conflicts_with = "store")]
        against_source: bool,
    },
    /// Open a volume as it was at a point, at once, as a block device over NBD; until this command ends.
    Open(OpenArgs),
    /// List the points that this user has open on this machine.
    #[command(after_long_help = "Example:\n  farside point opened --json | jq -r '.[].export'")]
    Opened,
    /// End a `farside point open` of this user on this machine, and wait until what was written is durable.
    ///
    /// Requests that the command has taken are answered before, and its clients see their connection end.
    #[command(after_long_help = "\
Examples:
  farside point close data-42-9f3c2a1b.nbd
  farside point close data@42-9f3c2a1b
  farside point close data                      if no other point of it is open")]
    Close {
        /// Its socket, its volume, or both volume and point.
        #[arg(value_name = "SOCKET|VOLUME[@POINT]")]
        what: String,
    },
}
