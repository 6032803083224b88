//! How the daemons' verbs speak: lines for people, or one JSON object a line.

use chipbound_wire::{Refusal, Result};
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// For whom results are printed on stdout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Speech {
    /// For people.
    Lines,
    /// For machines: one JSON object a line.
    Json,
}

impl Speech {
    /// As `--json` says.
    #[must_use]
    pub fn new(json: bool) -> Self {
        if json { Self::Json } else { Self::Lines }
    }

    /// A result: `lines` for people, `object` (JSON on one line) for machines. A reader that went away (`| head`) is no error; what
    /// could not be written for another reason is refused, after the thing itself was done.
    pub fn result(self, lines: impl Display, object: impl Display) -> Result<()> {
        let text = match self {
            Self::Lines => lines.to_string(),
            Self::Json => object.to_string(),
        };
        write(&mut std::io::stdout().lock(), text.trim_end_matches('\n'))
    }

    /// What people should know besides, on stderr; nothing for machines.
    pub fn note(self, line: impl Display) {
        if self == Self::Lines {
            eprintln!("{line}");
        }
    }
}

/// A path as JSON can hold it: what of it is no UTF-8 is replaced, as for people.
#[must_use]
pub fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn write(to: &mut impl Write, text: &str) -> Result<()> {
    match writeln!(to, "{text}").and_then(|()| to.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Refusal::io("cannot write to standard output", e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_wire::Code;
    use std::fs::OpenOptions;

    #[test]
    fn a_reader_that_went_away_is_no_error_and_a_full_disk_is() {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        write(&mut writer, "line").expect("somebody reads");
        drop(reader);
        write(&mut writer, "line").expect("nobody reads any more");
        let mut full = OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        assert_eq!(write(&mut full, "line").expect_err("no room").code, Code::DiskFull);
    }
}
