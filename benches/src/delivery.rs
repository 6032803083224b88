//! A large file from the server's disk to the customer's, against nginx and curl.

use crate::lab::{KeyMode, Lab, Way};
use crate::nginx::Nginx;
use crate::process::{cpu_seconds, run, run_told};
use crate::stats::{Series, Table, at_least};
use crate::{Options, Outcome, samples};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of a MB and of a GB here.
const MB: f64 = 1e6;
const GB: f64 = 1e9;
/// What part of nginx's speed is asked for.
const TARGET: f64 = 0.7;

/// The file, got once.
struct Got {
    wall: Duration,
    /// CPU seconds: server, client, processor.
    cpu: Vec<f64>,
    /// When each step that the command told was done, counted from its start.
    steps: BTreeMap<u64, Duration>,
}

/// One way of getting the file, measured once in each round.
#[derive(Default)]
struct Measured {
    speed: Series,
    /// CPU seconds per GB: server, client, processor.
    cpu: [Series; 3],
    /// Milliseconds to the end of each step.
    steps: BTreeMap<u64, Series>,
}

impl Measured {
    fn add(&mut self, size: u64, got: &Got) {
        self.speed.push(size as f64 / MB / got.wall.as_secs_f64());
        for (series, seconds) in self.cpu.iter_mut().zip(&got.cpu) {
            series.push(seconds / (size as f64 / GB));
        }
        for (step, at) in &got.steps {
            self.steps.entry(*step).or_default().push(at.as_secs_f64() * 1e3);
        }
    }
}

/// The four ways of ours, in the order of the rows.
const OURS: [(KeyMode, Way); 4] =
    [(KeyMode::Direct, Way::Tunnel), (KeyMode::Common, Way::Tunnel), (KeyMode::Direct, Way::OwnLine), (KeyMode::Common, Way::OwnLine)];

/// What is measured in each round: [`OURS`], then these two.
const CURL: usize = OURS.len();
const CURL_UNSYNCED: usize = CURL + 1;
const ROWS: usize = CURL_UNSYNCED + 1;
/// The order within a round, counted on by one in the next: in six rounds each way takes each place and follows each other way once
/// (a Williams design), because fresh memory costs more or less by what ran before.
const PLACES: [usize; ROWS] = [0, 1, 5, 2, 4, 3];

/// Measures and prints.
pub(crate) fn measure(options: &Options, folder: &Path) -> Outcome<()> {
    let size = options.large();
    let rounds = options.rounds().unwrap_or(if options.quick { 2 } else { 7 });
    println!("## Delivery of {} MiB of random bytes, {rounds} rounds, disk write included\n", size >> 20);
    let files = folder.join("files");
    fs::create_dir_all(&files)?;
    samples::random_file(&files.join("large"), size)?;
    let nginx = Nginx::start(&folder.join("nginx"), &files)?;
    let lab = Lab::start(&folder.join("lab"), &options.chipbound()?)?;
    run(&mut lab.publish(&files.join("large"), "large", true))?;

    let target = folder.join("received");
    let get = |row: usize| match row {
        CURL => fetch(&nginx, &target, true),
        CURL_UNSYNCED => fetch(&nginx, &target, false),
        ours => deliver(&lab, OURS[ours].0, OURS[ours].1, &target),
    };
    let mut measured: [Measured; ROWS] = Default::default();
    (0..ROWS).try_for_each(|row| get(row).map(drop))?; // Fills caches, and makes the one ciphertext of common mode.
    for round in 0..rounds {
        for row in PLACES.map(|place| (round + place) % ROWS) {
            measured[row].add(size, &get(row)?);
        }
    }
    print(&measured[CURL], &measured[CURL_UNSYNCED], &measured[..OURS.len()]);
    Ok(())
}

/// Everything that an earlier measurement wrote is on the disk, and its file is gone.
fn settle(target: &Path) -> Outcome<()> {
    if target.exists() {
        fs::remove_file(target)?;
    }
    rustix::fs::sync();
    Ok(())
}

fn fetch(nginx: &Nginx, target: &Path, synced: bool) -> Outcome<Got> {
    settle(target)?;
    let served = nginx.cpu()?;
    let begun = Instant::now();
    let curl = run(&mut nginx.curl("large", target))?;
    if synced {
        File::open(target)?.sync_data()?;
    }
    Ok(Got { wall: begun.elapsed(), cpu: vec![nginx.cpu()? - served, curl.cpu], steps: BTreeMap::new() })
}

fn deliver(lab: &Lab, key_mode: KeyMode, way: Way, target: &Path) -> Outcome<Got> {
    settle(target)?;
    let (server, processor) = (cpu_seconds(lab.server())?, cpu_seconds(lab.processor()?)?);
    let mut steps = BTreeMap::new();
    let ended = run_told(&mut lab.buy("large", key_mode, way, target), |line, at| {
        let told: Option<u64> = serde_json::from_str::<serde_json::Value>(line).ok().and_then(|v| v["step"].as_u64());
        if let Some(step) = told {
            steps.insert(step, at);
        }
    })?;
    let cpu = vec![cpu_seconds(lab.server())? - server, ended.cpu, cpu_seconds(lab.processor()?)? - processor];
    Ok(Got { wall: ended.wall, cpu, steps })
}

fn print(curl: &Measured, unsynced: &Measured, ours: &[Measured]) {
    let mut table = Table::new(&["way", "MB/s: median (range)", "of nginx → curl -o", "server", "client", "processor"]);
    let mut row = |name: String, measured: &Measured| {
        let ratio = measured.speed.over(&curl.speed).show(2);
        let [server, client, processor] = &measured.cpu;
        table.row([name, measured.speed.show(0), ratio, server.show(2), client.show(2), processor.show(2)]);
    };
    row("nginx → curl -o, then fdatasync".to_owned(), curl);
    row("nginx → curl -o, not synced".to_owned(), unsynced);
    for ((key_mode, way), measured) in OURS.iter().zip(ours) {
        row(format!("chipbound buy, {}, {}", key_mode.as_str(), way.as_str()), measured);
    }
    println!("Server, client and processor: CPU seconds per GB.\n");
    table.print();
    for ((key_mode, way), measured) in OURS.iter().zip(ours) {
        let name = format!("{}, {}", key_mode.as_str(), way.as_str());
        at_least(&name, measured.speed.over(&curl.speed).median(), TARGET);
        let steps: Vec<_> = measured.steps.iter().map(|(step, at)| format!("{step} at {:.0} ms", at.median())).collect();
        println!("  steps done: {}", steps.join(", "));
    }
    println!();
}
