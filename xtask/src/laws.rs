//! The tables of laws, rules and holes in `ARCHITECTURE.md`, held against the sources.
//!
//! A row is `| L2 | what | tests | mistakes |`. Every law L1 to L11 and every rule T1 to T17 has a row; every test that a row
//! names exists; every mistake that a row names is one that the sources can make; and every mistake of the sources stands in a
//! row and is noticed by somebody who exists. A row `| R5 | what | tests |` (bugs that others had) may say in words why there is
//! no test.

use std::collections::BTreeSet;

use farside_sim::mutations::{CaughtBy, MUTATIONS};

use crate::check::Sources;

const LAWS: u32 = 11;
const RULES: u32 = 17;

/// What the check knows of a mistake.
struct Mistake {
    name: &'static str,
    /// The test that notices it, with the file of which must name it.
    told_by: Option<&'static str>,
}

/// Checks the tables, and the list of mistakes behind them.
pub(crate) fn check(sources: &Sources, found: &mut Vec<String>) {
    let mistakes: Vec<Mistake> = MUTATIONS
        .iter()
        .map(|m| Mistake {
            name: m.name,
            told_by: match m.caught_by {
                CaughtBy::Seeds(_) | CaughtBy::Rarely(_) => None,
                CaughtBy::Loom(test) | CaughtBy::Story(_, test) => Some(test),
            },
        })
        .collect();
    check_tables(sources, &mistakes, found);
    check_mistakes(sources, &mistakes, found);
}

/// A row of one of the tables.
struct Row<'a> {
    of: &'a str,
    tests: Vec<&'a str>,
    mistakes: Vec<&'a str>,
}

fn row(line: &str) -> Option<Row<'_>> {
    let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
    let numbered = |of: &str, letter| of.strip_prefix(letter).is_some_and(|n: &str| n.parse::<u32>().is_ok());
    if let [of, _, tests, _] = cells[..] {
        let names = quoted(tests).into_iter().filter(|name| name.contains("::")).collect();
        return numbered(of, 'R').then(|| Row { of, tests: names, mistakes: Vec::new() });
    }
    let [of, _, tests, mistakes, _] = cells[..] else { return None };
    (numbered(of, 'L') || numbered(of, 'T') || of == "†").then(|| Row { of, tests: quoted(tests), mistakes: quoted(mistakes) })
}

fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn check_tables(sources: &Sources, mistakes: &[Mistake], found: &mut Vec<String>) {
    let Some(architecture) = sources.text("ARCHITECTURE.md") else {
        return found.push("there is no ARCHITECTURE.md".to_owned());
    };
    let rows: Vec<Row<'_>> = architecture.lines().filter_map(row).collect();
    let numbers = (1..=LAWS).map(|n| format!("L{n}")).chain((1..=RULES).map(|n| format!("T{n}")));
    for number in numbers.filter(|number| rows.iter().filter(|row| row.of == *number).count() != 1) {
        found.push(format!("ARCHITECTURE.md must have one row for {number}"));
    }
    let functions: BTreeSet<&str> = sources.rust().flat_map(|(_, text)| functions(text)).collect();
    for Row { of, tests, mistakes: named } in &rows {
        if tests.is_empty() && named.is_empty() && !of.starts_with('R') {
            found.push(format!("ARCHITECTURE.md names neither a test nor a mistake for {of}"));
        }
        for test in tests.iter().filter(|test| !functions.contains(last(test))) {
            found.push(format!("ARCHITECTURE.md names the test `{test}` for {of}; there is no such function"));
        }
        for name in named.iter().filter(|name| !mistakes.iter().any(|m| m.name == **name)) {
            found.push(format!("ARCHITECTURE.md names the mistake `{name}` for {of}; nobody can make it"));
        }
    }
    for mistake in mistakes.iter().filter(|m| !rows.iter().any(|row| row.mistakes.contains(&m.name))) {
        found.push(format!("no row of ARCHITECTURE.md names the mistake `{}`", mistake.name));
    }
}

/// The list of mistakes is that of the sources, and who is said to notice one does.
fn check_mistakes(sources: &Sources, mistakes: &[Mistake], found: &mut Vec<String>) {
    let listed = |name: &str| mistakes.iter().any(|m| m.name == name);
    for (file, text) in sources.rust().filter(|(file, _)| file.contains("/src/") && !file.starts_with("xtask/")) {
        for name in text.split("mutation::on(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
            if !listed(name) {
                found.push(format!("{file} can make the mistake `{name}`, which crates/sim/src/mutations.rs does not list"));
            }
        }
    }
    let told = |file: &str| crate::check::is_test_file(file) || file.ends_with("/stories.rs");
    let product = |file: &str| file != "crates/sim/src/mutations.rs" && !told(file);
    for Mistake { name, told_by } in mistakes {
        let literal = format!("\"{name}\"");
        if !sources.rust().any(|(file, text)| product(file) && text.contains(&literal)) {
            found.push(format!("crates/sim/src/mutations.rs lists the mistake `{name}`, which no source can make"));
        }
        let Some(test) = told_by else { continue };
        let tells =
            |text: &str| functions(text).any(|f| f == last(test)) && (test.starts_with("models::") || text.contains(&literal));
        if !sources.rust().any(|(_, text)| tells(text)) {
            found.push(format!(
                "the mistake `{name}` is said to be noticed by `{test}`, which does not exist or does not make it"
            ));
        }
    }
}

/// The function of a test's path.
fn last(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let rest = line.trim_start();
        let rest = rest.strip_prefix("pub(crate) ").or_else(|| rest.strip_prefix("pub(super) ")).unwrap_or(rest);
        let rest = rest.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ")?;
        Some(rest.split(['(', '<']).next().unwrap_or(rest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Mistake = Mistake { name: "a mistake", told_by: Some("stories::real_test") };

    /// A whole set of tables, with this in the place of T17's row and of the source.
    fn findings(last_row: &str, source: &str) -> Vec<String> {
        let row = |number: String| format!("| {number} | words | `x::real_test` | – |\n");
        let mut tables: String = (1..=LAWS).map(|n| row(format!("L{n}"))).collect();
        tables.extend((1..RULES).map(|n| row(format!("T{n}"))));
        tables.push_str("| † | a hole | | `a mistake` |\n");
        tables.push_str(last_row);
        let tests = "    pub(super) fn real_test() { tell(&[(\"a mistake\", \"L2\")]) }\n";
        let sources =
            Sources::of(&[("ARCHITECTURE.md", &tables), ("crates/a/src/lib.rs", source), ("crates/a/src/tests.rs", tests)]);
        let mut found = Vec::new();
        check_tables(&sources, &[TOLD], &mut found);
        check_mistakes(&sources, &[TOLD], &mut found);
        found
    }

    #[test]
    fn whole_tables_are_left_alone_and_each_gap_is_named() {
        let (good_row, good) = ("| T17 | words | `x::real_test` | `a mistake` |\n", "if mutation::on(\"a mistake\") {}");
        assert_eq!(findings(good_row, good), [""; 0]);
        let cases = [
            ("", good, "one row for T17"),
            ("| T17 | words | – | – |\n", good, "neither a test nor a mistake for T17"),
            ("| T17 | words | `x::dreamt_test` | – |\n", good, "`x::dreamt_test` for T17"),
            ("| T17 | words | – | `dreamt` |\n", good, "`dreamt` for T17; nobody"),
            (good_row, "", "no source can make"),
            (good_row, "if mutation::on(\"a mistake\") || mutation::on(\"new\") {}", "`new`, which crates/sim"),
        ];
        for (row, source, words) in cases {
            let found = findings(row, source);
            assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
        }
    }
}
