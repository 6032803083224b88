//! How the command speaks: results on stdout, its story and errors on stderr; lines for people, or one JSON object a line.
//! A reader that goes away (`| head`) is no error.

use crate::client::Story;
use chipbound_wire::{Code, Refusal};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where and how the command speaks.
pub struct Output {
    json: bool,
    bar: Mutex<Option<ProgressBar>>,
    /// Where there is no terminal.
    lines: Mutex<Option<Lines>>,
}

/// What was said of a progress in lines.
struct Lines {
    begun: Instant,
    /// Bytes that were there then.
    from: u64,
    last: Instant,
}

/// Between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Output {
    /// For people, or with `json` for machines.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, bar: Mutex::new(None), lines: Mutex::new(None) }
    }

    /// A result: `text` for people, `value` for machines.
    pub fn result(&self, text: impl AsRef<str>, value: &Value) {
        self.end_bar();
        if self.json { write_out(&value.to_string()) } else { write_out(text.as_ref()) }
    }

    /// A table: its rows under their heads, each value by the head's name for machines.
    pub fn table(&self, heads: &[&str], rows: &[Vec<String>], values: &[Value]) {
        if self.json {
            return values.iter().for_each(|v| write_out(&v.to_string()));
        }
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).chain([heads[column].len()]).max().unwrap_or_default();
        let widths: Vec<_> = (0..heads.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            write_out(padded.join("  ").trim_end());
        };
        line(&mut heads.iter().copied());
        rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
    }

    /// Something a person should know now; nothing for machines.
    pub fn note(&self, text: &str) {
        if !self.json {
            self.end_bar();
            write_err(text);
        }
    }

    /// A refusal, with what to do next.
    pub fn refusal(&self, refusal: &Refusal) {
        self.end_bar();
        let code = refusal.code;
        if self.json {
            let error = json!({ "code": code.as_str(), "detail": refusal.detail, "advice": code.advice() });
            write_err(&json!({ "error": error }).to_string());
        } else {
            write_err(refusal.for_people().trim_end());
        }
    }

    /// Says the progress in a line now and then.
    fn line(&self, done: u64, total: u64) {
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let said = lines.get_or_insert(Lines { begun: now, from: done, last: now });
        if now - said.last < LINE_EVERY {
            return;
        }
        said.last = now;
        let rate = done.saturating_sub(said.from) as f64 / (now - said.begun).as_secs_f64();
        if self.json {
            write_out(&json!({ "done": done, "bytes": total, "bytes_per_second": rate as u64 }).to_string());
        } else {
            write_err(&progress_line(done, total, rate));
        }
    }

    fn end_bar(&self) {
        *self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        if let Some(bar) = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Story for Output {
    fn step(&self, step: u16, text: &str, facts: Value) {
        self.end_bar();
        if self.json {
            let mut object = json!({ "step": step, "text": text });
            if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
                object.extend(facts);
            }
            write_out(&object.to_string());
        } else {
            write_err(&format!("{step}  {text}"));
        }
    }

    fn progress(&self, done: u64, total: u64) {
        if self.json || !std::io::stderr().is_terminal() {
            return self.line(done, total);
        }
        let mut bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        bar.get_or_insert_with(|| {
            // The total is 0 where nobody said it.
            let (length, template) = match total {
                0 => (None, "      {spinner} {bytes} {bytes_per_sec}"),
                total => (Some(total), "      {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
            };
            let style = ProgressStyle::with_template(template).expect("the template is well-formed");
            // What is there already was not brought at this rate.
            ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr()).with_style(style).with_position(done)
        })
        .set_position(done);
    }
}

/// How far a download is, for a log; `rate` is bytes a second. The total is 0 where nobody said it.
fn progress_line(done: u64, total: u64, rate: f64) -> String {
    let (so_far, speed) = (HumanBytes(done), HumanBytes(rate as u64));
    let left = (total > done && rate >= 1.0).then(|| HumanDuration(Duration::from_secs_f64((total - done) as f64 / rate)));
    match (total, left) {
        (0, _) => format!("      {so_far}, {speed}/s"),
        (_, Some(left)) => format!("      {so_far} of {}, {speed}/s, {left} left", HumanBytes(total)),
        (_, None) => format!("      {so_far} of {}, {speed}/s", HumanBytes(total)),
    }
}

/// The exit code of a refusal.
#[must_use]
pub fn exit_code(refusal: &Refusal) -> u8 {
    match refusal.code {
        Code::Cancelled => 130, // What shells have for a program that ended by SIGINT.
        code => code.fault().exit_code(),
    }
}

fn write_out(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}"); // A reader that went away is no error.
}

fn write_err(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_says_rate_and_time_left_where_they_are_known() {
        assert_eq!(progress_line(3 << 20, 9 << 20, 1048576.0), "      3.00 MiB of 9.00 MiB, 1.00 MiB/s, 6 seconds left");
        assert_eq!(progress_line(3 << 20, 9 << 20, 0.0), "      3.00 MiB of 9.00 MiB, 0 B/s");
        assert_eq!(progress_line(3 << 20, 0, 1024.0), "      3.00 MiB, 1.00 KiB/s");
    }
}
