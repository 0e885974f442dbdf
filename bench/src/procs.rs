//! What `/proc` says about a process and its children.

use std::{fs, io};

/// Ticks a second of the times in `/proc`, the same on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a process has used since its start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// CPU, of all its threads and of the children that have ended.
    pub(crate) cpu_s: f64,
    /// Context switches of the threads it has.
    pub(crate) switches: u64,
}

impl std::ops::Sub for Usage {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            cpu_s: self.cpu_s - earlier.cpu_s,
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// What a process and its children use.
pub(crate) fn usage(pid: u32) -> Usage {
    family(pid).into_iter().fold(Usage::default(), |sum, member| Usage {
        cpu_s: sum.cpu_s + cpu_s(member).unwrap_or(0.0),
        switches: sum.switches + switches(member).unwrap_or(0),
    })
}

/// Resident memory of a process and its children in MiB: proportional, and plain.
pub(crate) fn memory_mib(pid: u32) -> (f64, f64) {
    let of = |member, key| -> f64 {
        let text = fs::read_to_string(format!("/proc/{member}/smaps_rollup")).unwrap_or_default();
        kib_of(&text, key) / 1_024.0
    };
    family(pid)
        .into_iter()
        .fold((0.0, 0.0), |(pss, rss), member| (pss + of(member, "Pss:"), rss + of(member, "Rss:")))
}

/// A process and its children, for Postgres all there is.
fn family(pid: u32) -> Vec<u32> {
    let mut members = vec![pid];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(member) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if parent(member).is_ok_and(|parent| parent == pid) {
            members.push(member);
        }
    }
    members
}

/// The fields of `stat` behind the name, which may hold anything: the first is the state.
fn stat(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
    Ok(behind.split_whitespace().map(str::to_owned).collect())
}

fn field(fields: &[String], number: usize) -> io::Result<u64> {
    let text = fields.get(number).map_or("", String::as_str);
    text.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a short line in stat"))
}

fn parent(pid: u32) -> io::Result<u32> {
    field(&stat(pid)?, 1).map(|pid| pid as u32)
}

fn cpu_s(pid: u32) -> io::Result<f64> {
    let fields = stat(pid)?;
    // utime, stime, and both of the children that were waited for.
    let mut ticks = 0;
    for number in 11..15 {
        ticks += field(&fields, number)?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

fn switches(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        for line in text.lines().filter(|line| line.contains("ctxt_switches:")) {
            let count = line.rsplit_once(':').map_or("", |(_, count)| count.trim());
            sum += count.parse::<u64>().unwrap_or(0);
        }
    }
    Ok(sum)
}

fn kib_of(text: &str, key: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        let pid = std::process::id();
        let (pss, rss) = memory_mib(pid);
        assert!(pss > 0.0 && rss >= pss, "{pss} {rss}");
        assert!(parent(pid).unwrap() > 0);
        let until = cpu_s(pid).unwrap() + 0.02;
        while usage(pid).cpu_s < until {}
    }
}
