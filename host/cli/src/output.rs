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

/// A table with aligned columns: numbers to the right, words to the left. The first row is the head.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let column = |index: usize| rows.iter().filter_map(move |row| row.get(index));
    let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit()) && cell.parse::<f64>().is_ok();
    let shape: Vec<(usize, bool)> = (0..columns)
        .map(|i| {
            let width = column(i).map(|cell| cell.chars().count()).max().unwrap_or(0);
            (width, rows.len() > 1 && column(i).skip(1).all(is_number))
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells =
            row.iter().zip(&shape).map(
                |(cell, &(width, numbers))| {
                    if numbers { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            );
        format!("  {}", cells.collect::<Vec<_>>().join("  ")).trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn numbers_line_up_to_the_right_and_words_to_the_left() {
        let cells = |row: [&str; 3]| row.map(str::to_owned).to_vec();
        let rows = [cells(["stage", "ms", "what"]), cells(["diffuse", "1234", "noise"]), cells(["plan", "5", "words"])];
        assert_eq!(table(&rows), "  stage      ms  what\n  diffuse  1234  noise\n  plan        5  words");
    }
}
