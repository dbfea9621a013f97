//! One thread that starts all children of this process.
//!
//! Owns: the thread, and the wish that children die with this process.
//! Always holds: the thread lives as long as the process. Linux sends the parent-death signal when the *thread* that
//! started a child ends, and threads of tests and of runtimes end early.
//! Does not: wait for children; their handles do.

use anyhow::Context;
use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{LazyLock, Mutex, PoisonError};

type Request = (Command, SyncSender<io::Result<Child>>);

/// Callers wait for their answer anyway, so a full queue just makes them wait for those before them.
const WAITING: usize = 16;

static SPAWNER: LazyLock<Mutex<SyncSender<Request>>> = LazyLock::new(|| {
    let (requests, queue) = sync_channel::<Request>(WAITING);
    std::thread::spawn(move || {
        for (mut command, answer) in queue {
            // Who asked may be gone; then the child is dropped here and ends with this process.
            answer.send(command.spawn()).ok();
        }
    });
    Mutex::new(requests)
});

/// Starts `command` so that it is killed when this process ends, however it ends.
pub(crate) fn spawn(command: Command) -> anyhow::Result<Child> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let (answer, child) = sync_channel(1);
    let requests = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    requests.send((command, answer)).context("the thread that starts servers has ended")?;
    child
        .recv()
        .context("the thread that starts servers has ended")?
        .with_context(|| format!("cannot run {shown}"))
}

/// A command for `program` that [`spawn`] kills with us: `setpriv` of util-linux sets the parent-death signal and
/// then becomes the program. Without it children end with their handles only.
pub(crate) fn command(program: &std::path::Path) -> Command {
    static SETPRIV: LazyLock<bool> = LazyLock::new(|| {
        let mut try_it = Command::new("setpriv");
        try_it.args(["--pdeathsig", "KILL", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        try_it.status().is_ok_and(|status| status.success())
    });
    if !*SETPRIV {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}
