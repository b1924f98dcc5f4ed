//! Lines of `/etc/fstab`.

use std::path::PathBuf;

use farside_insert::stack::unescaped;

/// Where it is.
pub(crate) const FSTAB: &str = "/etc/fstab";

/// A mount of it.
pub(crate) struct Entry<'a> {
    /// What is mounted, as it stands there.
    pub(crate) source: &'a str,
    /// Where.
    pub(crate) mount: PathBuf,
    /// How.
    pub(crate) options: &'a str,
}

/// Its mounts, in their order; no swap.
pub(crate) fn entries(fstab: &str) -> impl Iterator<Item = Entry<'_>> {
    fstab.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (source, mount, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let options = fields.next().unwrap_or_default();
        (kind != "swap" && mount.starts_with('/')).then(|| Entry { source, mount: unescaped(mount), options })
    })
}
