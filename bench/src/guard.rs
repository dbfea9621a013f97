//! A server must not outlive the bench that started it, however that one ends: a small process holds the other end of
//! a pipe, and when the pipe ends before it was dismissed, it stops the server.

use std::io::{self, Read};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kept beside the process that is guarded; dropped after that one has ended.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    pub(crate) fn over(pid: u32) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        // The pipe stays in the child's handle: it ends when this process does.
        command.arg("guard").arg(pid.to_string()).stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("cannot start the server's guard")?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Killed before its pipe ends, so it stops nobody.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The guard's own process.
pub(crate) fn run(pid: i32) -> anyhow::Result<()> {
    let pid = Pid::from_raw(pid).context("not a process id")?;
    // A handle and not the number: numbers are given out again.
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("the process to guard")?;
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    match pidfd_send_signal(&handle, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("stopping the guarded process"),
    }
}
