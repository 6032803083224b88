//! How much memory each program takes while 1 GiB goes through it.

use crate::lab::{KeyMode, Lab, Way};
use crate::process::{Ended, run_watched};
use crate::stats::Table;
use crate::{Options, Outcome, samples};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The limit in bytes, of private and shared memory together.
const LIMIT: u64 = 64 << 20;
/// How often the processes are looked at.
const STEP: Duration = Duration::from_millis(3);
/// Bytes of a KiB, in which the kernel counts.
const KIB: u64 = 1024;

/// The most that was seen of one process.
#[derive(Clone, Copy, Default, Debug)]
struct Peak {
    /// RssAnon + RssShmem.
    own: u64,
    /// VmHWM: files that are mapped count too.
    resident: u64,
    /// Bytes of its memory files (memfd): opened code.
    opened: u64,
}

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let size = options.large();
    println!("## Memory while {} MiB go through, looked at every {} ms\n", size >> 20, STEP.as_millis());
    let mut lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    let program = samples::program(folder, "large-program", size)?;
    let data = folder.join("large-data");
    samples::random_file(&data, size)?;
    let (package, opened) = (folder.join("received"), folder.join("opened"));

    let mut rows = Vec::new();
    for (kind, file, is_data) in [("program", &program, false), ("data", &data, true)] {
        rows.push((format!("publish, {kind}"), watch(&lab, &mut lab.publish(file, kind, is_data))?));
        for key_mode in [KeyMode::Direct, KeyMode::Common] {
            for way in [Way::Tunnel, Way::OwnLine] {
                lab.restart_processor()?;
                let what = format!("deliver {kind}, {}, {}", key_mode.as_str(), way.as_str());
                rows.push((what, watch(&lab, &mut lab.buy(kind, key_mode, way, &package))?));
            }
        }
        lab.restart_processor()?;
        if is_data {
            rows.push(("open".to_owned(), watch(&lab, &mut lab.open(&package, &opened))?));
        } else {
            rows.push(("run, first".to_owned(), watch(&lab, &mut lab.run(&package))?));
            rows.push(("run again".to_owned(), watch(&lab, &mut lab.run(&package))?));
        }
    }
    print(&rows);
    Ok(())
}

/// Peaks by program.
type Peaks = BTreeMap<&'static str, Peak>;

/// Runs the command and looks at it, the server and the processor all the while.
fn watch(lab: &Lab, command: &mut Command) -> Outcome<Peaks> {
    let watched = Mutex::new(vec![("server", lab.server()), ("processor", lab.processor()?)]);
    let done = AtomicBool::new(false);
    reset_high_water(lab);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| look(&watched, &done));
        let ended: Outcome<Ended> =
            run_watched(command, |pid| watched.lock().unwrap_or_else(PoisonError::into_inner).push(("client", pid)));
        done.store(true, Ordering::Relaxed);
        let peaks = looking.join().map_err(|_| crate::failed("the watching thread panicked"))?;
        ended.map(|_| peaks)
    })
}

/// Begins the daemons' VmHWM anew (proc(5), clear_refs).
fn reset_high_water(lab: &Lab) {
    for pid in [Some(lab.server()), lab.processor().ok()].into_iter().flatten() {
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5"); // Without the right to it, VmHWM counts from the start.
    }
}

fn look(watched: &Mutex<Vec<(&'static str, i32)>>, done: &AtomicBool) -> Peaks {
    let mut peaks = Peaks::new();
    while !done.load(Ordering::Relaxed) {
        for (name, pid) in watched.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let peak = peaks.entry(name).or_default();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |field: &str| {
                let line = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
                line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * KIB
            };
            peak.own = peak.own.max(field("RssAnon") + field("RssShmem"));
            peak.resident = peak.resident.max(field("VmHWM"));
            peak.opened = peak.opened.max(memory_files(*pid));
        }
        std::thread::sleep(STEP);
    }
    peaks
}

/// Bytes of the memory files that a process holds open; nothing where we may not look.
fn memory_files(pid: i32) -> u64 {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let memory = descriptors
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:")));
    memory.filter_map(|path| path.metadata().ok()).map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) * 512).sum()
}

fn print(rows: &[(String, Peaks)]) {
    println!("RssAnon + RssShmem / VmHWM, MiB; beside them the memory files with opened code, which the running program shares.\n");
    let mut table = Table::new(&["what", "client", "server", "processor", "opened code, MiB"]);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    for (what, peaks) in rows {
        let of = |name| peaks.get(name).copied().unwrap_or_default();
        let show = |name| format!("{} / {}", mib(of(name).own), mib(of(name).resident));
        table.row([what.clone(), show("client"), show("server"), show("processor"), mib(of("processor").opened).to_string()]);
    }
    table.print();
    for name in ["client", "server", "processor"] {
        let most = rows.iter().filter_map(|(_, peaks)| peaks.get(name)).map(|p| p.own).max().unwrap_or_default();
        let verdict = if most <= LIMIT { "met" } else { "missed" };
        println!("{name}: at most {} MiB; limit {} MiB: {verdict}", mib(most), mib(LIMIT));
    }
    println!();
}
