//! How the command speaks: results on stdout, its story and errors on stderr; lines for people, or one JSON object a line.
//! A reader that goes away (`| head`) is no error.

use crate::client::Story;
use chipbound_host::Speech;
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
    /// Why stdout took no more; a reader that went away is no reason.
    unwritten: Mutex<Option<Refusal>>,
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
        Self { json, bar: Mutex::new(None), lines: Mutex::new(None), unwritten: Mutex::new(None) }
    }

    /// Why not all results could be written, where that is so: the command did its work, and whoever reads its results lacks some.
    #[must_use]
    pub fn unwritten(&self) -> Option<Refusal> {
        self.unwritten.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    fn write_out(&self, line: &str) {
        if let Err(refusal) = Speech::Lines.result(line, "") {
            self.unwritten.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(refusal);
        }
    }

    /// A result: `text` for people, `value` for machines.
    pub fn result(&self, text: impl AsRef<str>, value: &Value) {
        self.end_bar();
        if self.json { self.write_out(&value.to_string()) } else { self.write_out(text.as_ref()) }
    }

    /// A table: its rows under their heads, each value by the head's name for machines.
    pub fn table(&self, heads: &[&str], rows: &[Vec<String>], values: &[Value]) {
        if self.json {
            return values.iter().for_each(|v| self.write_out(&v.to_string()));
        }
        let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).chain([heads[column].len()]).max().unwrap_or_default();
        let widths: Vec<_> = (0..heads.len()).map(width).collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            self.write_out(padded.join("  ").trim_end());
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
        self.refusal_of(None, refusal);
    }

    fn refusal_of(&self, wish: Option<&str>, refusal: &Refusal) {
        self.end_bar();
        let code = refusal.code;
        if self.json {
            let mut error = json!({ "code": code.as_str(), "detail": refusal.detail, "advice": code.advice() });
            name(&mut error, wish);
            write_err(&json!({ "error": error }).to_string());
        } else {
            let before = wish.map(|wish| format!("{wish}: ")).unwrap_or_default();
            write_err(&format!("{before}{}", refusal.for_people().trim_end()));
        }
    }

    fn step_of(&self, wish: Option<&str>, step: u16, text: &str, facts: Value) {
        self.end_bar();
        if self.json {
            let mut object = json!({ "step": step, "text": text });
            if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
                object.extend(facts);
            }
            name(&mut object, wish);
            self.write_out(&object.to_string());
        } else {
            let before = wish.map(|wish| format!("{wish}: ")).unwrap_or_default();
            write_err(&format!("{step}  {before}{text}"));
        }
    }

    /// Says the progress in a line now and then.
    fn line(&self, wish: Option<&str>, lines: &Mutex<Option<Lines>>, done: u64, total: u64) {
        let mut lines = lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let said = lines.get_or_insert(Lines { begun: now, from: done, last: now });
        if now - said.last < LINE_EVERY {
            return;
        }
        said.last = now;
        let rate = done.saturating_sub(said.from) as f64 / (now - said.begun).as_secs_f64();
        if self.json {
            let mut object = json!({ "done": done, "bytes": total, "bytes_per_second": rate as u64 });
            name(&mut object, wish);
            self.write_out(&object.to_string());
        } else {
            write_err(&progress_line(wish, done, total, rate));
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
        self.step_of(None, step, text, facts);
    }

    fn progress(&self, done: u64, total: u64) {
        if self.json || !std::io::stderr().is_terminal() {
            return self.line(None, &self.lines, done, total);
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

/// One of several that come at once: whatever is said of it has its name, as it was wished for. Its progress is said in lines, on a
/// terminal too.
pub struct Named<'a> {
    output: &'a Output,
    wish: &'a str,
    lines: Mutex<Option<Lines>>,
}

impl<'a> Named<'a> {
    /// Speaks of `wish`.
    #[must_use]
    pub fn new(output: &'a Output, wish: &'a str) -> Self {
        Self { output, wish, lines: Mutex::new(None) }
    }

    /// A refusal, with what to do next.
    pub fn refusal(&self, refusal: &Refusal) {
        self.output.refusal_of(Some(self.wish), refusal);
    }
}

impl Story for Named<'_> {
    fn step(&self, step: u16, text: &str, facts: Value) {
        self.output.step_of(Some(self.wish), step, text, facts);
    }

    fn progress(&self, done: u64, total: u64) {
        self.output.line(Some(self.wish), &self.lines, done, total);
    }
}

fn name(object: &mut Value, wish: Option<&str>) {
    if let (Some(object), Some(wish)) = (object.as_object_mut(), wish) {
        object.insert("wish".to_owned(), json!(wish));
    }
}

/// How far a download is, for a log; `rate` is bytes a second. The total is 0 where nobody said it.
fn progress_line(wish: Option<&str>, done: u64, total: u64, rate: f64) -> String {
    let before = wish.map(|wish| format!("      {wish}:")).unwrap_or_else(|| "     ".to_owned());
    let (so_far, speed) = (HumanBytes(done), HumanBytes(rate as u64));
    let left = (total > done && rate >= 1.0).then(|| HumanDuration(Duration::from_secs_f64((total - done) as f64 / rate)));
    match (total, left) {
        (0, _) => format!("{before} {so_far}, {speed}/s"),
        (_, Some(left)) => format!("{before} {so_far} of {}, {speed}/s, {left} left", HumanBytes(total)),
        (_, None) => format!("{before} {so_far} of {}, {speed}/s", HumanBytes(total)),
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

fn write_err(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_says_rate_and_time_left_where_they_are_known() {
        assert_eq!(progress_line(None, 3 << 20, 9 << 20, 1048576.0), "      3.00 MiB of 9.00 MiB, 1.00 MiB/s, 6 seconds left");
        assert_eq!(progress_line(None, 3 << 20, 9 << 20, 0.0), "      3.00 MiB of 9.00 MiB, 0 B/s");
        assert_eq!(progress_line(None, 3 << 20, 0, 1024.0), "      3.00 MiB, 1.00 KiB/s");
        assert_eq!(progress_line(Some("perl"), 3 << 20, 0, 1024.0), "      perl: 3.00 MiB, 1.00 KiB/s");
    }
}
