//! A server with its worker processes: their memory and their time, as Linux tells them.

use std::fs;
use std::time::Duration;

use crate::watch::memory_kib;

/// Ticks of a second in /proc/PID/stat (USER_HZ), on every architecture that Linux runs on here.
const TICKS: u64 = 100;

/// The service first, then its workers.
pub(super) struct Processes(Vec<u32>);

impl Processes {
    pub(super) fn of(server: u32) -> Self {
        let children = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            (stat(pid, 1)? == u64::from(server)).then_some(pid)
        });
        Self(std::iter::once(server).chain(children).collect())
    }

    pub(super) fn workers(&self) -> usize {
        self.0.len() - 1
    }

    pub(super) fn service_kib(&self) -> u64 {
        memory_kib(self.0[0])
    }

    pub(super) fn memory_kib(&self) -> u64 {
        self.0.iter().map(|pid| memory_kib(*pid)).sum()
    }

    /// The sum of what each held at its most.
    pub(super) fn memory_peak_kib(&self) -> u64 {
        let peak = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
        };
        self.0.iter().map(peak).sum()
    }

    /// The processor time that all of them have had.
    pub(super) fn cpu(&self) -> Duration {
        let ticks = |pid: &u32| stat(*pid, 11).unwrap_or(0) + stat(*pid, 12).unwrap_or(0);
        Duration::from_millis(self.0.iter().map(ticks).sum::<u64>() * 1000 / TICKS)
    }
}

/// A number of /proc/PID/stat, counted after the command's name and from 0 on: 1 is the parent, 11 and 12 are its time.
fn stat(pid: u32, field: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(field)?.parse().ok()
}
