//! Where a figure comes from: machine, kernel, date, commit.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::{clock, cpus};

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Host {
    pub(crate) date_utc: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) commit: Option<String>,
    pub(crate) congestion_control: Option<String>,
}

impl Host {
    pub(crate) fn look() -> Self {
        let kernel = rustix::system::uname();
        Self {
            date_utc: clock::date(),
            kernel: format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: cpus::Cpus::allowed().map_or(0, |cpus| cpus.count()),
            commit: commit(),
            congestion_control: fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
                .ok()
                .map(|name| name.trim().to_owned()),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim().to_owned());
    model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The commit of the folder that we are called in, with `+` when something there is not committed.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let dirty = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    Some(if dirty { format!("{commit}+") } else { commit })
}

/// The kind of file system that holds a folder: fsync is worth nothing on some.
pub(crate) fn file_system(path: &Path) -> String {
    let Ok(status) = rustix::fs::statfs(path) else { return "unknown".to_owned() };
    // Magic numbers of statfs(2).
    match status.f_type as u64 {
        0xef53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x794c_7630 => "overlayfs".to_owned(),
        0x2fc1_2fc1 => "zfs".to_owned(),
        TMPFS_MAGIC => "tmpfs".to_owned(),
        other => format!("file system {other:#x}"),
    }
}

const TMPFS_MAGIC: u64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_a_processor() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fast One @ 3GHz\n"), "Fast One @ 3GHz");
        assert_eq!(cpu_model(""), std::env::consts::ARCH);
    }

    #[test]
    fn a_host_has_a_kernel_and_cores() {
        let host = Host::look();
        assert!(host.kernel.starts_with("Linux ") && host.cores > 0, "{host:?}");
        assert!(!file_system(Path::new("/proc")).is_empty());
    }
}
