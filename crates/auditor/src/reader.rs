//! Reads the lines of a journal, in their order and to their end.

use crate::journal::{Line, VERSION};
use chipbound_wire::{Code, Refusal, Result, Time};
use std::io::{BufRead, Read};

/// Bytes of one line: two documents in Base64 and what stands around them.
const MAX_LINE: u64 = 128 * 1024;

pub(crate) struct Reader<R> {
    source: R,
    buffer: Vec<u8>,
    lines: u64,
    kind: u8,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(source: R) -> Self {
        Self { source, buffer: Vec::new(), lines: 0, kind: 0, ended: false }
    }

    /// The first line: when the journal was made.
    pub(crate) fn head(&mut self) -> Result<Time> {
        match self.line()? {
            Some(Line::Journal(head)) if (1..=VERSION).contains(&head.version) => Ok(head.made_at),
            Some(Line::Journal(head)) => Err(self.bad(&format!("a journal of version {}, this auditor reads {VERSION}", head.version))),
            _ => Err(self.bad("not the beginning of a journal")),
        }
    }

    /// The next line; none at the end of a whole journal.
    pub(crate) fn next(&mut self) -> Result<Option<Line>> {
        let before = self.lines;
        let Some(line) = self.line()? else {
            return if self.ended { Ok(None) } else { Err(self.bad("the journal is cut off: its last line is missing")) };
        };
        let kind = place(&line);
        if self.ended || kind < self.kind || kind == 0 {
            return Err(self.bad("out of order"));
        }
        self.kind = kind;
        match line {
            Line::End(lines) if lines != before => Err(self.bad(&format!("{lines} lines should precede the last one"))),
            Line::End(_) => {
                self.ended = true;
                self.next()
            }
            line => Ok(Some(line)),
        }
    }

    fn line(&mut self) -> Result<Option<Line>> {
        self.buffer.clear();
        let read = (&mut self.source).take(MAX_LINE).read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|e| Refusal::io("reading the journal", e))?;
        if read == 0 {
            return Ok(None);
        }
        self.lines += 1;
        match self.buffer.strip_suffix(b"\n") {
            Some(line) => serde_json::from_slice(line).map(Some).map_err(|e| self.bad(&e.to_string())),
            None if read as u64 == MAX_LINE => Err(Refusal::new(Code::TooLarge, format!("line {} is longer than its limit", self.lines))),
            None => Err(self.bad("the journal is cut off")),
        }
    }

    fn bad(&self, why: &str) -> Refusal {
        Refusal::new(Code::Malformed, format!("line {} of the journal: {why}", self.lines))
    }
}

/// The place of a line's kind in the order of kinds.
fn place(line: &Line) -> u8 {
    match line {
        Line::Journal(_) => 0,
        Line::Account(_) => 1,
        Line::Seller(_) => 2,
        Line::Order(_) => 3,
        Line::Delivery(_) => 4,
        Line::Transfer(_) => 5,
        Line::Payment(_) => 6,
        Line::Entry(_) | Line::Stray(_) => 7,
        Line::Balance(_) => 8,
        Line::Statement(_) => 9,
        Line::Checkpoint(_) => 10,
        Line::Node(_) => 11,
        Line::LogHead(_) => 12,
        Line::Receipt(_) => 13,
        Line::End(_) => 14,
    }
}
