//! What the figures depend on: processor, kernel, file system.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Flags of the processor on which the speed of AES-GCM, BLAKE3 and SHA-256 depends.
const FLAGS: [&str; 7] = ["aes", "vaes", "vpclmulqdq", "avx2", "avx512f", "avx512bw", "sha_ni"];

/// Prints the machine.
pub(crate) fn print(folder: &Path) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|n| n.trim() == name));
        line.and_then(|l| l.split_once(':')).map_or_else(|| "unknown".to_owned(), |(_, v)| v.trim().to_owned())
    };
    let flags = field("flags");
    let present: Vec<_> = FLAGS.into_iter().filter(|f| flags.split_whitespace().any(|have| have == *f)).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = fs::read_to_string("/etc/debian_version").unwrap_or_default();
    println!(
        "machine: {cores} cores of {} (family {} model {}), {}",
        field("model name"),
        field("cpu family"),
        field("model"),
        present.join(" ")
    );
    println!("kernel {}, Debian {}, temporary folder on {}", kernel.trim(), system.trim(), file_system(folder));
    for (program, argument) in [("nginx", "-v"), ("curl", "--version"), ("openssl", "version"), ("rustc", "--version")] {
        if let Ok(output) = Command::new(program).arg(argument).output() {
            // nginx says its version on stderr.
            let text = [output.stdout, output.stderr].concat();
            println!("{}", String::from_utf8_lossy(&text).lines().next().unwrap_or_default());
        }
    }
    println!();
}

/// The type of the file system that holds the folder, by the longest mount point above it.
fn file_system(folder: &Path) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let named = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        Some((words.next()?, words.next()?))
    });
    named
        .filter(|(at, _)| folder.starts_with(at))
        .max_by_key(|(at, _)| at.len())
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}
