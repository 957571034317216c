//! What the program prints: results on standard output, everything said while it works on standard error.

use serde_json::Value;
use std::io::Write;

/// Text for people, or JSON lines for programs.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// JSON lines when `json`.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// A result: `value` as one JSON line, or `text`.
    pub fn result(self, value: &Value, text: &str) {
        if self.json { self.json(value) } else { write_line(&mut std::io::stdout().lock(), text) }
    }

    /// One JSON line.
    pub fn json(self, value: &Value) {
        write_line(&mut std::io::stdout().lock(), &value.to_string());
    }

    /// Something to read while waiting; left out of JSON output.
    pub fn note(self, text: &str) {
        if !self.json {
            write_line(&mut std::io::stderr().lock(), text);
        }
    }
}

/// A closed pipe (`zoetrope … | head`) is no reason to fail.
fn write_line(to: &mut impl Write, text: &str) {
    drop(writeln!(to, "{text}"));
}

/// A table with aligned columns: the first to the left, the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            if i == 0 { format!("{cell:<w$}", w = widths[i]) } else { format!("{cell:>w$}", w = widths[i]) }
        });
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_line_up() {
        let cells = |row: [&str; 2]| row.map(str::to_owned).to_vec();
        assert_eq!(table(&[cells(["stage", "ms"]), cells(["diffuse", "1234"])]), "  stage      ms\n  diffuse  1234");
    }
}
