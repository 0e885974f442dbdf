//! What the documents say of the code: the program they show, and the files and tests they name.

use std::fs;

use crate::{root, rust_files};

const DOCUMENTS: &[&str] = &[
    "README.md",
    "docs/architecture.md",
    "docs/mutants.md",
    "docs/operations.md",
    "docs/proof.md",
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The blocks of a document in one language, without their fences.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).filter_map(|rest| rest.split("```").next()).map(Into::into).collect()
}

/// The example is built and linted with the workspace, so what the README shows compiles.
#[test]
fn the_program_in_the_readme_is_the_example() {
    let example = read("worker-examples/hello/src/main.rs");
    let code: Vec<&str> = example.lines().filter(|line| !line.starts_with("//!")).collect();
    assert_eq!(blocks(&read("README.md"), "rust"), [format!("{}\n", code.join("\n").trim_start())]);
}

/// Links and paths in code type lead somewhere, the latter from the root. A path in code type has a slash and a file's
/// ending; `file.rs`: `name` names a function of that file as well.
#[test]
fn what_the_documents_name_exists() {
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = read(document);
        let folder = root().join(document).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            let is_local = !path.is_empty() && !path.contains("://");
            if is_local && !folder.join(path).exists() {
                missing.push(format!("{document}: {target}"));
            }
        }
        let mut file = None;
        // Odd pieces are in code type. A line is looked at by itself: fences have no odd pieces.
        for line in text.lines().filter(|line| !line.starts_with("```")) {
            for piece in line.split('`').skip(1).step_by(2) {
                let is_file = piece.contains('/')
                    && [".rs", ".proto", ".sql", ".md"].iter().any(|end| piece.ends_with(end));
                if is_file {
                    file = Some(piece);
                    if !root().join(piece).is_file() {
                        missing.push(format!("{document}: {piece}"));
                    }
                } else if let Some(path) = file
                    && is_test_name(piece)
                    && !fs::read_to_string(root().join(path))
                        .is_ok_and(|code| code.contains(&format!("fn {piece}(")))
                {
                    missing.push(format!("{document}: {path}: {piece}"));
                }
            }
            file = None;
        }
    }
    assert!(missing.is_empty(), "named and not there:\n{}", missing.join("\n"));
}

/// Tests are named by sentences.
fn is_test_name(piece: &str) -> bool {
    piece.matches('_').count() >= 3
        && piece.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

/// The limits in the README are those that hold by default.
#[test]
fn the_limits_in_the_readme_are_the_defaults() {
    let text = read("README.md");
    let limits = onward_server::engine::Limits::default();
    let grouped = |value: u64| {
        let digits = value.to_string();
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        out
    };
    let seconds = |micros: i64| format!("{} s", micros / 1_000_000);
    let rows = [
        ("id or name", format!("{} bytes", grouped(limits.id_bytes))),
        (
            "payloads of one command or request together",
            format!("{} MiB", limits.payload_bytes >> 20),
        ),
        (
            "history of a run",
            format!(
                "{} events or {} MiB",
                grouped(limits.history_events),
                limits.history_bytes >> 20
            ),
        ),
        ("activities that have not closed", grouped(limits.pending_activities)),
        ("timers that have not closed", grouped(limits.pending_timers)),
        ("signals a run accepts", grouped(limits.signals_per_run)),
        ("signals that wait while a run is about to close", grouped(limits.held_signals)),
        ("heartbeat details kept", format!("{} KiB", limits.heartbeat_details_bytes >> 10)),
        ("last failure kept between attempts", format!("{} KiB", limits.last_failure_bytes >> 10)),
        (
            "request ids remembered for a workflow id",
            format!(
                "{}, for {} h",
                grouped(limits.request_ids),
                limits.request_window_us / 3_600_000_000
            ),
        ),
        ("workflow task without a sign of life", seconds(limits.task_deadline_us)),
        ("wait for a lost worker's activities", seconds(limits.reconnect_grace_us)),
        (
            "failed attempts before an activity shows as an incident",
            limits.incident_attempts.to_string(),
        ),
        ("failed attempts before a run shows as blocked", limits.blocked_attempts.to_string()),
    ];
    for (what, value) in rows {
        let row = format!("| {what} | {value} |");
        assert!(text.contains(&row), "the README has no row {row}");
    }
}

/// The string literals that follow `marker` in a piece of code, up to the end of each call.
fn literals_behind(code: &str, marker: &str) -> Vec<String> {
    let calls = code.split(marker).skip(1).filter_map(|rest| rest.split(");").next());
    calls.flat_map(|call| call.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Whoever reads a log or a dashboard finds each of the server's words explained.
#[test]
fn warnings_metrics_and_settings_are_explained() {
    let text = read("docs/operations.md");
    let mut words = Vec::new();
    for path in rust_files(&root().join("server/src")) {
        let code = fs::read_to_string(path).unwrap();
        for marker in ["tracing::warn!(", "tracing::error!("] {
            words.extend(literals_behind(&code, marker));
        }
    }
    assert!(words.len() > 20, "no warnings were found: {words:?}");
    let metrics = literals_behind(&read("server/src/metrics.rs"), "registry.register(");
    words.extend(metrics.into_iter().step_by(2).map(|name| format!("onward_{name}")));
    let args = read("cli/src/args.rs");
    words.extend(args.split("env = \"").skip(1).map(|rest| {
        let name = rest.split('"').next().unwrap();
        format!("`{name}`")
    }));
    words.retain(|word| !text.contains(word.as_str()));
    assert_eq!(words, [""; 0], "docs/operations.md says nothing of them");
}
