//! What a person or a program gets to see: where the figures come from, tables, one JSON object, a progress bar.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, json};

use crate::host::Host;

/// A table of words. The first column is left-aligned, the others right-aligned.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    fn render(&self) -> String {
        let width = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = self.columns.iter().map(|column| width(column)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(cell));
            }
        }
        let line = |cells: &[&str]| {
            let mut line = String::from("  ");
            for (index, (cell, &widest)) in cells.iter().zip(&widths).enumerate() {
                let pad = " ".repeat(widest - width(cell));
                let (before, after) = if index == 0 { ("", &*pad) } else { (&*pad, "") };
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
                line.push_str("  ");
            }
            line.trim_end().to_owned()
        };
        let rules: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        let mut lines = vec![self.title.clone(), String::new(), line(&self.columns)];
        lines.push(line(&rules.iter().map(String::as_str).collect::<Vec<_>>()));
        lines.extend(self.rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>())));
        lines.join("\n")
    }
}

/// One bench's outcome.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    /// How it was run: what one needs to run it again.
    pub(crate) setting: Vec<(&'static str, String)>,
    pub(crate) tables: Vec<Table>,
    /// What a reader must know to judge the figures.
    pub(crate) notes: Vec<String>,
    /// Every run's figures.
    pub(crate) data: Value,
}

impl Report {
    pub(crate) fn new(bench: &'static str) -> Self {
        Self { bench, setting: Vec::new(), tables: Vec::new(), notes: Vec::new(), data: Value::Null }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.setting.push((name, value.into()));
    }

    fn json(&self, host: &Host) -> Value {
        let setting: serde_json::Map<_, _> =
            self.setting.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        json!({ "bench": self.bench, "host": host, "setting": setting, "notes": self.notes, "data": self.data })
    }

    fn text(&self, host: &Host) -> String {
        let mut lines = vec![String::new(), format!("banyan-bench {}", self.bench), String::new()];
        let mut facts = vec![
            ("date", format!("{} UTC", host.date_utc)),
            ("machine", format!("{}, {} cores", host.cpu, host.cores)),
        ];
        facts.push(("kernel", host.kernel.clone()));
        facts.extend(host.congestion_control.clone().map(|name| ("congestion control", name)));
        facts.extend(host.commit.clone().map(|commit| ("commit", commit)));
        facts.extend(self.setting.iter().cloned());
        let widest = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in facts {
            let mut value_lines = value.lines();
            lines.push(format!("  {name:widest$}  {}", value_lines.next().unwrap_or_default()));
            lines.extend(value_lines.map(|line| format!("  {:widest$}  {line}", "")));
        }
        for table in &self.tables {
            lines.extend([String::new(), table.render()]);
        }
        if !self.notes.is_empty() {
            lines.push(String::new());
            lines.extend(self.notes.iter().map(|note| format!("  · {note}")));
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// Prints it, for people or as one JSON object.
    pub(crate) fn print(&self, host: &Host, as_json: bool) -> io::Result<()> {
        let text = if as_json { self.json(host).to_string() } else { self.text(host) };
        writeln!(io::stdout().lock(), "{text}")
    }
}

/// A column of every run, as JSON.
pub(crate) fn data(runs: &impl Serialize, summary: &impl Serialize) -> Value {
    json!({ "runs": runs, "summary": summary })
}

/// A bar on a terminal, lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    lines: bool,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        let bar = ProgressBar::new(steps as u64);
        if let Ok(style) =
            ProgressStyle::with_template("  {bar:30.green/black} {pos}/{len} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(250));
        Self { bar, lines: !io::stderr().is_terminal() }
    }

    /// What is being done.
    pub(crate) fn say(&self, what: impl Into<String>) {
        let what = what.into();
        if self.lines {
            // A closed standard error is no reason to stop measuring.
            drop(writeln!(
                io::stderr().lock(),
                "  {}/{} {what}",
                self.bar.position(),
                self.bar.length().unwrap_or_default()
            ));
        }
        self.bar.set_message(what);
    }

    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    pub(crate) fn done(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let mut table = Table::new("title", &["what", "µs"]);
        table.row(["one".to_owned(), "1.25".to_owned()]);
        table.row(["eleven".to_owned()]);
        assert_eq!(table.render(), "title\n\n  what      µs\n  ──────  ────\n  one     1.25\n  eleven");
    }

    #[test]
    fn both_forms_name_config_and_machine() {
        let mut report = Report::new("fanout");
        report.set("config", "[limits]\nx = 1");
        report.notes.push("a note".to_owned());
        let host = Host::look();
        let text = report.text(&host);
        assert!(
            text.contains("config")
                && text.contains("x = 1")
                && text.contains(&host.kernel)
                && text.contains("· a note")
        );
        let json = report.json(&host);
        assert_eq!(json["setting"]["config"], "[limits]\nx = 1");
        assert_eq!(json["host"]["kernel"], *host.kernel);
    }
}
