//! Daemons that do not outlive the test's process, whatever becomes of it, and leave nothing behind.
//!
//! A shell is their parent. It starts what it reads from a pipe that this process holds, and when the pipe ends (dropped, process
//! ended, process killed), it kills them, the newest first, and removes their folder. `setpriv` has the kernel kill them with the
//! shell. They are not children of this process, since the kernel ends such children with the *thread* that started them, here a
//! test's, and since nothing drops a `static`, which a server for all tests of a program has to be.
//!
//! Killed, not stopped: nobody reads again what they have written.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::wait_until;

/// In the folder `$1`: reads `NAME COMMAND…`, starts it and says its process id. Children that have ended keep their ids until `wait`, so
/// nobody else is killed.
const SCRIPT: &str = r#"
cd "$1" || exit 1
kept=
while read -r name command; do
    setpriv --pdeathsig KILL -- $command </dev/null >"$name.out" 2>&1 &
    kept="$! $kept"
    echo $!
done
[ -z "$kept" ] || kill -KILL $kept 2>/dev/null
wait
cd / && rm -rf "$1"
"#;

/// How many lines of each log a failure shows.
const LOG_LINES: usize = 12;

#[derive(Debug)]
pub(crate) struct Keeper {
    shell: Child,
    /// Its end ends everything.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
    kept: Vec<(&'static str, u32)>,
}

impl Keeper {
    /// Keeps nothing yet, in a new folder.
    pub(crate) fn new(prefix: &str) -> Self {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir().expect("a temporary directory").keep();
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT, "sh"]).arg(&folder);
        // In a group of its own: who interrupts the test at a terminal does not interrupt the cleaning up.
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        let mut shell = shell.spawn().expect("every system has a shell");
        let orders = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().expect("it was asked for"));
        Self { shell, orders, answers, folder, kept: Vec::new() }
    }

    /// The folder in which everything runs, and which goes with it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a daemon. Its words are split at blanks; its output goes to `NAME.out`.
    pub(crate) fn start(&mut self, name: &'static str, command: &str) {
        let orders = self.orders.as_mut().expect("taken only when it is dropped");
        orders.write_all(format!("{name} {command}\n").as_bytes()).expect("the shell reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the shell answers");
        self.kept.push((name, answer.trim().parse().unwrap_or_else(|_| panic!("no process id of {name}: {answer:?}"))));
    }

    /// Runs a command that ends by itself and must succeed.
    ///
    /// # Panics
    /// When it does not, with what the logs say.
    pub(crate) fn run(&self, command: &str) {
        let name = command.split(' ').next().unwrap_or(command);
        let log = File::options().create(true).append(true).open(self.folder.join(format!("{name}.out"))).expect("a log");
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"]) // with this thread, which waits for it
            .args(command.split(' '))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file"))
            .stderr(log)
            .spawn()
            .expect("setpriv is a part of every Debian");
        let status = self.wait_for(command, || child.try_wait().expect("our own child").ok_or("it has not ended"));
        assert!(status.success(), "{command}: {status}\n{}", self.logs());
    }

    /// Waits for a condition as long as everything runs.
    ///
    /// # Panics
    /// When it takes too long, or a daemon has ended, with what the logs say.
    pub(crate) fn wait_for<T>(&self, what: &str, mut condition: impl FnMut() -> Result<T, &'static str>) -> T {
        wait_until(what, || {
            // Who has ended has no file any more: nobody waits for it yet.
            let ended = self.kept.iter().find(|(_, pid)| std::fs::read_link(format!("/proc/{pid}/exe")).is_err());
            if let Some((name, _)) = ended {
                panic!("{name} has ended before {what}\n{}", self.logs());
            }
            condition().map_err(|instead| format!("{instead}\n{}", self.logs()))
        })
    }

    /// The last lines of every log.
    fn logs(&self) -> String {
        let mut text = String::new();
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut logs: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "log" || e == "out")).collect();
        logs.sort();
        for log in logs {
            let all = std::fs::read(&log).unwrap_or_default();
            let all = String::from_utf8_lossy(&all);
            let lines: Vec<&str> = all.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let name = log.file_name().unwrap_or_default().to_string_lossy();
            writeln!(text, "--- {name}\n{}", last.join("\n")).expect("into a string");
        }
        text
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Set where the test below runs itself.
    const OWNER: &str = "FARSIDE_TEST_OWNS_A_KEEPER";

    fn is_gone(pid: u32, folder: &Path) -> Result<(), &'static str> {
        let gone = !Path::new(&format!("/proc/{pid}")).exists() && !folder.exists();
        if gone { Ok(()) } else { Err("the process or its folder is there") }
    }

    #[test]
    fn what_is_kept_runs_in_its_folder_until_the_keeper_goes() {
        let mut keeper = Keeper::new("farside-keeper-");
        keeper.start("sleeper", "sleep 1000");
        keeper.run("touch here");
        let (folder, pid) = (keeper.folder().to_owned(), keeper.kept[0].1);
        assert!(folder.join("here").exists() && Path::new(&format!("/proc/{pid}")).exists());
        drop(keeper);
        assert_eq!(is_gone(pid, &folder), Ok(()));
    }

    #[test]
    #[should_panic(expected = "teller has ended before something that never is\n--- teller.out\nan error\n")]
    fn who_waits_for_what_has_ended_is_told_so_with_its_words() {
        let mut keeper = Keeper::new("farside-keeper-");
        std::fs::write(keeper.folder().join("program"), "echo an error; exit 1").expect("written");
        keeper.start("teller", "sh program");
        keeper.wait_for("something that never is", || Err::<(), _>("it is not"));
    }

    #[test]
    fn nothing_outlives_an_owner_that_is_killed() {
        if std::env::var_os(OWNER).is_some() {
            let mut keeper = Keeper::new("farside-keeper-");
            keeper.start("sleeper", "sleep 1000");
            println!("\nkept: {} {}", keeper.kept[0].1, keeper.folder().display());
            let _ = std::io::stdin().read(&mut [0]);
            return;
        }
        let mut owner = Command::new(std::env::current_exe().expect("a process knows its file"));
        owner.args(["--exact", "--nocapture", "keeper::tests::nothing_outlives_an_owner_that_is_killed"]).env(OWNER, "1");
        let mut owner = owner.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs already");
        let mut said = BufReader::new(owner.stdout.take().expect("it was asked for")).lines().map_while(Result::ok);
        let kept = said.find_map(|line| line.strip_prefix("kept: ").map(str::to_owned)).expect("it says so");
        let (pid, folder) = kept.split_once(' ').expect("two words");
        let (pid, folder): (u32, _) = (pid.parse().expect("a number"), Path::new(folder));
        assert!(folder.exists());
        owner.kill().expect("our own child");
        owner.wait().expect("our own child");
        wait_until("what was kept to be gone", || is_gone(pid, folder));
    }
}
