//! What a server takes of the machine, with the processes that it started: its token's module may run in some of its own.

use std::fs;
use std::time::Duration;

/// What all threads have had of their cores so far (proc_pid_schedstat: nanoseconds come first).
///
/// # Errors
/// The system does not tell.
fn cpu_time(server: u32) -> Result<Duration, String> {
    let had = |task: &str| -> Option<u64> {
        fs::read_to_string(format!("{task}/schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    let nanos: u64 = family(server).into_iter().flat_map(tasks).filter_map(|task| had(&task)).sum();
    if nanos == 0 {
        Err("the system does not tell what threads have had of their cores".into())
    } else {
        Ok(Duration::from_nanos(nanos))
    }
}

/// What comes of `work`, and what all threads had of their cores meanwhile.
///
/// # Errors
/// Of `work`, or the system does not tell.
pub(crate) fn cpu_during<T>(server: u32, work: impl FnOnce() -> Result<T, String>) -> Result<(T, Duration), String> {
    let before = cpu_time(server)?;
    let done = work()?;
    Ok((done, cpu_time(server)?.saturating_sub(before)))
}

/// What they hold now (VmRSS in proc_pid_status(5)); pages that several hold count for each. 0 if the system does not tell.
pub(crate) fn memory_kib(server: u32) -> u64 {
    family(server).into_iter().filter_map(|process| status_kib(process, "VmRSS:")).sum()
}

/// What one of them holds.
pub(crate) fn own_memory_kib(process: u32) -> u64 {
    status_kib(process, "VmRSS:").unwrap_or(0)
}

/// What each held at its most, together.
pub(crate) fn memory_peak_kib(server: u32) -> u64 {
    family(server).into_iter().filter_map(|process| status_kib(process, "VmHWM:")).sum()
}

/// How many they are.
pub(crate) fn count(server: u32) -> usize {
    family(server).len()
}

fn status_kib(process: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let held = status.lines().find_map(|line| line.strip_prefix(name))?;
    held.trim().trim_end_matches(" kB").parse().ok()
}

/// The process, and whom it and they started.
fn family(process: u32) -> Vec<u32> {
    let mut family = vec![process];
    for task in tasks(process) {
        let children = fs::read_to_string(format!("{task}/children")).unwrap_or_default();
        let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
        family.extend(children.flat_map(self::family));
    }
    family
}

/// The directories of its threads. One may end between two looks.
fn tasks(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.map(|task| task.path().to_string_lossy().into_owned()).collect()
}
