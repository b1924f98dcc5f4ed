//! What became of a configuration that was read again.

use serde::{Deserialize, Serialize};

/// Answer of [`RELOAD`](crate::routes::RELOAD). An invalid configuration is an error instead, and changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Reloaded {
    /// What holds from now on: `group db: keep 10 → 48`.
    pub changed: Vec<String>,
    /// What holds only after a restart; until then what was.
    pub needs_restart: Vec<String>,
    /// Volumes of which no file says anything any more. They stay in service until they are removed.
    pub kept_volumes: Vec<String>,
    /// What was taken over and did not succeed, such as a volume that cannot be served.
    pub failed: Vec<String>,
}
