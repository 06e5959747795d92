//! The report for a person.

use std::fmt::Write;

use super::{Report, Status};

/// Columns of a status, and of the longest check name.
const STATUS: usize = 7;
const NAME: usize = 18;

pub(super) fn text(report: &Report, colour: bool, width: usize) -> String {
    let mut out = String::new();
    let mut area = "";
    for check in &report.checks {
        if check.area != area {
            area = &check.area;
            let gap = if out.is_empty() { "" } else { "\n" };
            let _ = writeln!(out, "{gap}{}", paint(area, "1", colour));
        }
        let status = format!("{:STATUS$}", word(check.status));
        let start = format!("  {}  {:NAME$}  ", paint(&status, shade(check.status), colour), check.name);
        let indent = 2 + STATUS + 2 + NAME + 2;
        let _ = writeln!(out, "{start}{}", wrap(&check.found, indent, width));
        if let Some(advice) = &check.advice {
            let _ = writeln!(out, "{:indent$}→ {}", "", wrap(advice, indent + 2, width));
        }
    }
    let (problems, warnings) = (report.problems, report.warnings);
    let (p, w) = (if problems == 1 { "" } else { "s" }, if warnings == 1 { "" } else { "s" });
    let _ = writeln!(out, "\n{problems} problem{p}, {warnings} warning{w}");
    out
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Info => "info",
        Status::Warning => "warning",
        Status::Problem => "problem",
    }
}

/// Select Graphic Rendition of ECMA-48: green, none, yellow, red.
const fn shade(status: Status) -> &'static str {
    match status {
        Status::Ok => "32",
        Status::Info => "0",
        Status::Warning => "33",
        Status::Problem => "31",
    }
}

fn paint(text: &str, rendition: &str, colour: bool) -> String {
    if colour { format!("\x1b[{rendition}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Breaks a text that starts at column `indent` at its spaces, but never within `backquotes`, which hold commands.
fn wrap(text: &str, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = indent;
    for word in words(text) {
        let length = word.chars().count();
        if column > indent {
            if column + 1 + length > width {
                let _ = write!(out, "\n{:indent$}", "");
                column = indent;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.push_str(word);
        column += length;
    }
    out
}

/// The words of a text; what stands in backquotes is one word.
fn words(text: &str) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c: char| {
        quoted ^= c == '`';
        c == ' ' && !quoted
    })
    .filter(|word| !word.is_empty())
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Check;

    #[test]
    fn commands_stay_whole_and_lines_stay_short() {
        let wrapped = wrap("turn it off: `ethtool -K eth0 rxvlan off`, and then go on", 4, 30);
        assert_eq!(wrapped, "turn it off:\n    `ethtool -K eth0 rxvlan off`,\n    and then go on");
        assert!(wrapped.lines().all(|line| line.len() <= 34));
    }

    #[test]
    fn a_report_is_aligned_and_coloured_only_when_asked() {
        let check = |area: &str, status, advice: Option<&str>| Check {
            area: area.into(),
            name: "version",
            status,
            found: "6.1".into(),
            advice: advice.map(Into::into),
        };
        let checks = vec![check("kernel", Status::Ok, None), check("eth0", Status::Problem, Some("do this"))];
        let report = Report { checks, warnings: 0, problems: 1 };
        let expected = "kernel\n  ok       version             6.1\n\neth0\n  problem  version             6.1\n\
                        \x20                              → do this\n\n1 problem, 0 warnings\n";
        assert_eq!(report.text(false, 80), expected);
        let coloured = report.text(true, 80);
        assert!(coloured.contains("\x1b[31mproblem\x1b[0m") && coloured.contains("\x1b[1meth0\x1b[0m"));
    }
}
