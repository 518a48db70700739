//! What a bench found: samples, their percentiles, aims, and how they are shown.
//!
//! Every figure is printed as a table of Markdown, written as JSON to `target/bench/<name>.json`
//! and, when asked for, put between the marks of its bench in `docs/benchmarks.md`.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What the figures were measured on.
pub(crate) fn machine() -> Value {
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once([':', '=']).map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "processor": field("/proc/cpuinfo", "model name"),
        "processors": processors,
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "system": field("/etc/os-release", "PRETTY_NAME").trim_matches('"'),
        "loadBefore": load.split(' ').next(),
        "at": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%MZ").to_string(),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// What is measured again and again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds a time, in ms.
    pub(crate) fn time(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// Adds any other value.
    pub(crate) fn value(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The smallest sample that at least this share (0 to 1) of all are not above; NaN without any.
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(0.5)
    }
}

impl From<f64> for Samples {
    fn from(value: f64) -> Self {
        Self(vec![value])
    }
}

impl From<Vec<f64>> for Samples {
    fn from(values: Vec<f64>) -> Self {
        Self(values)
    }
}

/// The highest value that is wished for, and of which percentile.
#[derive(Debug, Clone, Copy)]
struct Aim {
    percentile: f64,
    most: f64,
}

/// One line of a table.
#[derive(Debug, Clone)]
struct Row {
    name: String,
    unit: &'static str,
    samples: Samples,
    aims: Vec<Aim>,
}

/// A table with what it shows and how that was measured.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    title: String,
    method: String,
    rows: Vec<Row>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, method: impl Into<String>) -> Self {
        Self { title: title.into(), method: method.into(), rows: Vec::new() }
    }

    /// Adds a line; nothing when there is not a single sample.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        unit: &'static str,
        samples: impl Into<Samples>,
    ) -> &mut Self {
        let row = Row { name: name.into(), unit, samples: samples.into(), aims: Vec::new() };
        self.rows.push(row);
        self
    }

    /// What is wished for the line that was added last: this percentile (0 to 1) at most this.
    pub(crate) fn aim(&mut self, percentile: f64, most: f64) -> &mut Self {
        if let Some(row) = self.rows.last_mut() {
            row.aims.push(Aim { percentile, most });
        }
        self
    }

    /// Lines with a figure: what was left out of a run has none.
    fn measured(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.samples.len() > 0)
    }

    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n", self.title, self.method);
        text.push_str("| | unit | p50 | p95 | p99 | runs | aim |\n");
        text.push_str("|---|---|--:|--:|--:|--:|---|\n");
        for row in self.measured() {
            let samples = &row.samples;
            let many = samples.len() > 1;
            let shown =
                |share| if many { figure(samples.percentile(share)) } else { String::new() };
            let aims: Vec<String> = row.aims.iter().map(|aim| aim.shown(samples)).collect();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} |",
                row.name,
                row.unit,
                figure(samples.median()),
                shown(0.95),
                shown(0.99),
                samples.len(),
                aims.join("; "),
            );
        }
        text
    }

    fn json(&self) -> Value {
        let rows = self.measured().map(|row| {
            let samples = &row.samples;
            let aims: Vec<Value> = row
                .aims
                .iter()
                .map(|a| json!({ "percentile": a.percentile, "most": a.most, "met": a.is_met(samples) }))
                .collect();
            json!({
                "name": row.name,
                "unit": row.unit,
                "runs": samples.len(),
                "p50": samples.median(),
                "p95": samples.percentile(0.95),
                "p99": samples.percentile(0.99),
                "least": samples.percentile(0.0),
                "most": samples.percentile(1.0),
                "aims": aims,
            })
        });
        json!({ "title": self.title, "method": self.method, "rows": rows.collect::<Vec<_>>() })
    }
}

impl Aim {
    fn is_met(&self, samples: &Samples) -> bool {
        samples.percentile(self.percentile) <= self.most
    }

    fn shown(&self, samples: &Samples) -> String {
        let met = if self.is_met(samples) { "met" } else { "**missed**" };
        let of = if samples.len() > 1 {
            format!("p{:.0} ", self.percentile * 100.0)
        } else {
            String::new()
        };
        format!("{of}≤ {}: {met}", figure(self.most))
    }
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        v if v == 0.0 || v >= 100.0 || v.is_nan() => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Everything that one bench found.
pub(crate) struct Report {
    name: &'static str,
    machine: Value,
    notes: Vec<String>,
    tables: Vec<Table>,
}

impl Report {
    /// Begins a report, and looks at the machine as it is before anything is measured.
    pub(crate) fn begin(name: &'static str) -> Self {
        Self { name, machine: machine(), notes: Vec::new(), tables: Vec::new() }
    }

    /// Something to be said of all figures, as a sentence.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Adds a table, and shows it at once.
    pub(crate) fn add(&mut self, table: Table) {
        println!("{}", table.markdown());
        self.tables.push(table);
    }

    fn markdown(&self) -> String {
        let text = |key: &str| self.machine[key].as_str().unwrap_or_default().to_owned();
        let mut page = format!(
            "Version {} at {}: {} processors ({}), {} of memory, Linux {}, {}; load before it {}.",
            text("version"),
            text("at"),
            self.machine["processors"],
            text("processor"),
            text("memory"),
            text("kernel"),
            text("system"),
            text("loadBefore"),
        );
        for note in &self.notes {
            page.push(' ');
            page.push_str(note);
        }
        page.push('\n');
        for table in &self.tables {
            page.push('\n');
            page.push_str(&table.markdown());
        }
        page
    }

    /// Writes `target/bench/<name>.json` and `.md` and, if so wished, its part of the documentation.
    pub(crate) fn write(&self, docs: bool) -> Result<()> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
        let dir = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let dir = dir.join("bench");
        let markdown = self.markdown();
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        let json = json!({ "bench": self.name, "machine": self.machine, "notes": self.notes, "tables": tables });
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join(self.name).with_extension("md"), &markdown))
            .and_then(|()| {
                fs::write(dir.join(self.name).with_extension("json"), format!("{json:#}\n"))
            })
            .with_context(|| format!("{} cannot be written", dir.display()))?;
        eprintln!("written: {}/{}.json and .md", dir.display(), self.name);
        if docs {
            let page = root.join("docs/benchmarks.md");
            let text = fs::read_to_string(&page)
                .with_context(|| format!("{} cannot be read", page.display()))?;
            let text = replaced(&text, self.name, &markdown)
                .with_context(|| format!("{} has no marks for {}", page.display(), self.name))?;
            fs::write(&page, text)
                .with_context(|| format!("{} cannot be written", page.display()))?;
            eprintln!("written: docs/benchmarks.md");
        }
        Ok(())
    }
}

/// The page with what stands between the marks of a bench replaced; `None` without marks.
fn replaced(page: &str, name: &str, by: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = page.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}\n{by}\n{end}{after}"))
}
