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
When a group is failed back, its disks are overwritten with what was published since. What they held
and no point does, the last writes before the failover and all that came after it here, is
kept first, as a branch: one folder for each volume, which lies over the point that the disks went
their own way from. That point is pinned on the gateway.

To look into it, copy it to the gateway (it is sparse), and open it over its point:

  tar -C /var/lib/farside/branches/db -cSzf db.tgz 20260301T120000Z           # on this host
  tar -xSzf db.tgz                                                            # on the gateway
  farside point open web1/db/data 42-9f3c2a1b --writable --overlay 20260301T120000Z/data

Examples:
  farside branch list
  farside branch remove db/20260301T120000Z")]
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
            let pinned = removed.over.as_ref().map_or_else(String::new, |over| {
                format!(
                    "its point is pinned still: farside point unpin {} --of {}/{}, on the gateway\n",
                    over.id, removed.source, removed.group
                )
            });
            print::out(&format!("removed branch {}\n{pinned}", removed.id))
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
    let mut table = Table::new(&["BRANCH", "OVER", "CUT", "DIFFERS", "WHOLE", "VOLUMES"]);
    for branch in &all {
        let over = branch.over.as_ref();
        table.row([
            branch.id.clone(),
            over.map_or_else(|| NOTHING.to_owned(), |over| over.id.to_string()),
            over.map_or_else(|| NOTHING.to_owned(), |over| print::time(over.cut_wall)),
            print::bytes(branch.bytes),
            if branch.whole { "yes" } else { "no" }.to_owned(),
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
        text.push_str("it is not whole: a failback was keeping it, and was told to keep no more, or is not through\n");
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
    if let Some(over) = &branch.over {
        for volume in &branch.volumes {
            text.push_str(&format!(
                "on the gateway, with a copy of it: farside point open {}/{}/{volume} {} --writable --overlay {volume}\n",
                branch.source, branch.group, over.id
            ));
        }
    }
    text
}
