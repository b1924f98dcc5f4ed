//! `farside branch …`: what the disks of a host that was failed over held, and no point does.

use clap::Subcommand;
use farside_control::Client;
use farside_control::failback::BranchStatus;

use crate::args::Global;
use crate::confirm;
use crate::failure::{Exit, Failure};
use crate::hosts::Hosts;
use crate::print::{self, NOTHING, Table};

/// `farside branch …`
#[derive(Debug, Subcommand)]
#[command(after_long_help = "\
When a group is failed back, its disks are overwritten with what was published since. What only
they hold, the last writes before the failover and all that came after it here, is kept first, as
a branch: one folder for each volume, which lies over a point. The gateway has that point pinned
until the branch is removed.

To look into it, copy it to the gateway (it is sparse), and open it over its point; `branch show`
prints the commands.

Examples:
  farside branch list
  farside branch show db/20260301T120000Z-9f3c2a
  farside branch remove db/20260301T120000Z-9f3c2a")]
pub(crate) enum BranchCommand {
    /// List what is kept on this host.
    List,
    /// Show one branch, and how to open it.
    Show {
        /// As `branch list` names it.
        branch: String,
    },
    /// Remove a branch. What is in it is nowhere else: it asks first.
    Remove {
        /// As `branch list` names it.
        branch: String,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
    },
}

pub(crate) async fn run(global: &Global, hosts: &Hosts, command: BranchCommand) -> Result<(), Failure> {
    let client = hosts.source();
    match command {
        BranchCommand::List => list(global, &client).await,
        BranchCommand::Show { branch } => {
            let branch = one(&client, &branch).await?;
            if global.json { print::json(&branch) } else { print::out(&shown(&branch)) }
        }
        BranchCommand::Remove { branch, yes } => {
            let known = one(&client, &branch).await?;
            if !global.json {
                eprint!("{}", shown(&known));
            }
            confirm::confirm("Remove it? It is nowhere else.", "nothing was changed", yes)?;
            let removed = client.branch_remove(&branch).await?;
            if global.json {
                return print::json(&removed);
            }
            let trouble = removed.trouble.as_ref().zip(removed.over.as_ref()).map_or_else(String::new, |(trouble, over)| {
                format!(
                    "! {trouble}: farside point unpin {} --all --of {}/{}, there, if nothing else wants it\n",
                    over.id, removed.source, removed.group
                )
            });
            print::out(&format!("removed branch {}\n{trouble}", removed.id))
        }
    }
}

async fn one(client: &Client, id: &str) -> Result<BranchStatus, Failure> {
    let found = client.branches().await?.into_iter().find(|branch| branch.id == id);
    found.ok_or_else(|| Failure::new(Exit::NotFound, format!("there is no branch {id}"), "`farside branch list` lists them"))
}

async fn list(global: &Global, client: &Client) -> Result<(), Failure> {
    let all = client.branches().await?;
    if global.json {
        return print::json(&all);
    }
    if all.is_empty() {
        return print::out("no branches: nothing was kept of disks that were overwritten\n");
    }
    let mut table = Table::new(&["BRANCH", "OVER", "CUT", "DIFFERS", "WHOLE", "UNREADABLE", "VOLUMES"]);
    for branch in &all {
        let [over, cut] = print::point_cells(branch.over.as_ref());
        table.row([
            branch.id.clone(),
            over,
            cut,
            print::bytes(branch.bytes),
            if branch.whole && branch.partial.is_empty() { "yes" } else { "no" }.to_owned(),
            if branch.unreadable_bytes > 0 { print::bytes(branch.unreadable_bytes) } else { NOTHING.to_owned() },
            branch.volumes.join(" "),
        ]);
    }
    let troubles = all.iter().filter_map(|branch| Some(format!("! {}: {}\n", branch.id, branch.trouble.as_ref()?)));
    print::out(&format!("{table}{}", troubles.collect::<String>()))
}

fn shown(branch: &BranchStatus) -> String {
    let mut text = format!("branch {}: {} of {}/{}", branch.id, print::bytes(branch.bytes), branch.source, branch.group);
    if let Some(over) = &branch.over {
        text.push_str(&format!(" over point {}, cut {}", over.id, print::time(over.cut_wall)));
    }
    text.push_str(&format!("\nin {}\n", branch.path));
    if !branch.whole {
        text.push_str("it is not whole: a failback was keeping it, and is not through, or was told to keep no more. The rest is on the disks\n");
    }
    for volume in &branch.partial {
        text.push_str(&format!("volume {volume} was removed while it was kept: the rest of it is on its disk only\n"));
    }
    if branch.unreadable_bytes > 0 {
        text.push_str(&format!(
            "{} of the disks could not be read, and are in no branch\n",
            print::bytes(branch.unreadable_bytes)
        ));
    }
    if let Some(trouble) = &branch.trouble {
        text.push_str(&format!("{trouble}\n"));
    }
    let folder = std::path::Path::new(&branch.path);
    if let (Some(over), Some(above), Some(name)) = (&branch.over, folder.parent(), folder.file_name()) {
        let name = name.to_string_lossy();
        text.push_str(&format!("here:           tar -C {} -cSzf branch.tgz {name}\n", above.display()));
        text.push_str("on the gateway: tar -xSzf branch.tgz\n");
        for volume in &branch.volumes {
            text.push_str(&format!(
                "                farside point open {}/{}/{volume} {} --writable --overlay {name}/{volume}\n",
                branch.source, branch.group, over.id
            ));
        }
    }
    text
}
