//! How the demo tells its story: lines for people, one JSON object a line for machines.

use crate::client::Story;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A promise, and whether it was seen to hold.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    /// Its name for machines.
    pub(crate) name: &'static str,
    /// What is promised.
    pub(crate) text: String,
    /// Whether it held.
    pub(crate) held: bool,
    /// What was seen.
    pub(crate) evidence: String,
}

/// Tells the story.
pub(crate) struct Teller {
    json: bool,
    colours: bool,
    since: Mutex<Instant>,
    bar: Mutex<Option<ProgressBar>>,
}

impl Teller {
    /// For people, or with `json` for machines.
    #[must_use]
    pub(crate) fn new(json: bool) -> Self {
        let colours = !json && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colours, since: Mutex::new(Instant::now()), bar: Mutex::new(None) }
    }

    /// A new part of the story begins; the clock of its steps starts.
    pub(crate) fn part(&self, title: &str) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        if !self.json {
            self.say(&format!("\n{}", self.paint("1", title)));
        }
    }

    /// A fact of that part.
    pub(crate) fn fact(&self, step: &str, text: &str, facts: Value) {
        if self.json { self.object(&json!(step), text, facts) } else { self.say(&format!("  {text}")) }
    }

    /// What a program printed.
    pub(crate) fn quote(&self, text: &str) {
        if !self.json {
            text.lines().for_each(|line| self.say(&format!("    | {line}")));
        }
    }

    /// A promise was checked.
    pub(crate) fn promise(&self, promise: &Promise) {
        let Promise { name, text, held, evidence } = promise;
        if self.json {
            self.object(&json!("promise"), text, json!({ "promise": name, "held": held, "evidence": evidence }));
        } else {
            let verdict = if *held { self.paint("32", "held  ") } else { self.paint("31", "BROKEN") };
            self.say(&format!("  {verdict}  {text}\n          {evidence}"));
        }
    }

    fn object(&self, step: &Value, text: &str, facts: Value) {
        let mut object = json!({ "step": step, "text": text });
        if let (Some(object), Value::Object(facts)) = (object.as_object_mut(), facts) {
            object.extend(facts);
        }
        self.say(&object.to_string());
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn say(&self, line: &str) {
        if let Some(bar) = self.bar.lock().unwrap_or_else(PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
        let _ = writeln!(std::io::stdout().lock(), "{line}"); // A reader that went away is no error.
    }

    fn milliseconds(&self) -> f64 {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).elapsed().as_secs_f64() * 1000.0
    }
}

impl Story for Teller {
    fn step(&self, step: u16, text: &str, mut facts: Value) {
        let at = self.milliseconds();
        if self.json {
            if let Some(facts) = facts.as_object_mut() {
                facts.insert("at_ms".to_owned(), json!(at));
            }
            self.object(&json!(step), text, facts);
        } else {
            self.say(&format!("  {}  {at:7.1} ms  {text}", self.paint("36", &step.to_string())));
        }
    }

    fn progress(&self, done: u64, total: u64) {
        if self.json || !std::io::stdout().is_terminal() {
            return;
        }
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("                    {bar:40} {bytes}/{total_bytes}");
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout()).with_style(style.expect("the template is well-formed"))
        })
        .set_position(done);
    }
}
