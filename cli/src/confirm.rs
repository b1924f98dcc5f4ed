//! Asking a person before something is taken away.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use crate::failure::{Exit, Failure, OrFail as _};

/// Asks, unless it was said already with `--yes`. `kept` says what stays as it is without a yes.
///
/// # Errors
/// [`Exit::Usage`] where nobody is there to be asked, [`Exit::Refused`] after a no.
pub(crate) fn confirm(question: &str, kept: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, format!("{kept}: nobody was there to confirm it"), "say it with --yes"));
    }
    eprint!("{question} [y/N] ");
    std::io::stderr().flush().or_fail("cannot ask")?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).or_fail("cannot read the answer")?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::new(Exit::Refused, kept, "")) }
}
