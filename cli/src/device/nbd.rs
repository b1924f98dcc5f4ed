//! By the kernel's NBD client: `/dev/nbdN` over the server of the point, in which nothing waits for a successor. Its identifier says whose
//! it is.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farside_nbd::Handle;
use farside_nbd::kernel::{self, Claim, Keeper, KernelDevice, KernelError, Spec};

use crate::device::{Owner, load};
use crate::failure::{Exit, Failure};

const IDENTIFIER: &str = "farside-open:";
const MODULE: &str = "nbd";
const NODES: &str = "/dev";

/// Dropped, what still uses it sees errors.
pub(crate) struct Device(Option<Keeper>);

impl Device {
    pub(super) fn attach(server: &Handle, block: u32, owner: Owner) -> Result<Self, Failure> {
        if matches!(kernel::probe(), Err(KernelError::NoClient)) && nix::unistd::geteuid().is_root() {
            load(MODULE);
        }
        let spec = Spec { identifier: identifier(owner), block, rotational: false, dead_connection: Duration::ZERO };
        let attach = || {
            let one = one_at_a_time()?;
            sweep_alone(&one)?;
            let device = KernelDevice::attach(&spec, server)?;
            let kept = device.keep(spec.clone(), server.clone(), |lost| eprintln!("farside: {lost}"));
            kept.map_err(|source| KernelError::Io { what: "start a thread for", path: "the device".into(), source })
        };
        match attach() {
            Ok(keeper) => Ok(Self(Some(keeper))),
            Err(error) => Err(Failure::from_error(Exit::Failed, &error, "run it as root, or without --device: over NBD")),
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }

    /// Takes it away; without a claim from whoever uses it.
    pub(super) fn end(&mut self, claim: Option<Claim>) -> Result<(), Failure> {
        let keeper = self.0.take().expect("it is there until it is dropped");
        let ended = match claim {
            Some(claim) => keeper.detach(claim),
            None => keeper.tear_away(),
        };
        ended.map_err(|(keeper, error)| {
            self.0 = Some(keeper);
            Failure::from_error(Exit::Refused, &error, "")
        })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some(keeper) = self.0.take() {
            let _ = keeper.tear_away(); // its process ends
        }
    }
}

/// Takes away what killed processes have left. Nobody serves it any more: whoever has one open meets errors or waits, and is better told the former.
pub(super) fn sweep() -> Result<Vec<PathBuf>, KernelError> {
    sweep_alone(&one_at_a_time()?)
}

fn sweep_alone(_one: &File) -> Result<Vec<PathBuf>, KernelError> {
    let mut left = kernel::identifiers()?;
    left.retain(|identifier| is_left(identifier));
    kernel::disconnect_left(&left)
}

/// † Between the look at a device and its end nobody else may make one of that number.
fn one_at_a_time() -> Result<File, KernelError> {
    let failed = |source| KernelError::Io { what: "lock", path: NODES.into(), source };
    let nodes = File::open(NODES).map_err(failed)?;
    nodes.lock().map_err(failed)?;
    Ok(nodes)
}

fn identifier(owner: Owner) -> String {
    format!("{IDENTIFIER}{}:{}", owner.pid, owner.began)
}

fn is_left(identifier: &str) -> bool {
    let of = identifier.strip_prefix(IDENTIFIER).and_then(|of| of.split_once(':'));
    let owner = of.and_then(|(pid, began)| Some(Owner { pid: pid.parse().ok()?, began: began.parse().ok()? }));
    owner.is_some_and(|owner| owner.is_gone(|began| began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_was_left_if_its_process_is_not_the_one_that_made_it() {
        let this = Owner::this().expect("it runs");
        assert!(!is_left(&identifier(this)), "it lives");
        assert!(is_left(&identifier(Owner { began: this.began + 1, ..this })), "another one had its number");
        for of_others in ["farside:7e57", "farside-open:", "farside-open:x:1", "data"] {
            assert!(!is_left(of_others), "{of_others}");
        }
    }
}
