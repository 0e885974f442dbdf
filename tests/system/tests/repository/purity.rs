//! What the pure parts must not touch.
//!
//! The two cores are functions of their arguments, and what surrounds them on the server takes
//! clock, randomness and tasks from its `Env`: only so can a whole node run on a virtual clock and
//! from one seed. The words below are how code would reach past that.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{root, rust_files};

/// Clocks, randomness, tasks of nobody, and maps whose order differs from run to run.
const PAST_THE_ENV: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "tokio::spawn",
    "tokio::task::spawn",
    "spawn_blocking",
    "HashMap",
    "HashSet",
    "RandomState",
    "fastrand",
    "rand",
    "Uuid::new_v4",
    "Uuid::now_v7",
];

/// Everything that is not computing.
const THE_EDGES: &[&str] = &[
    "tokio",
    "sqlx",
    "tonic",
    "tracing",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::process",
];

#[test]
fn pure_parts_take_time_randomness_and_tasks_from_outside() {
    let parts = [
        "server/src/engine",
        "server/src/shard",
        "server/src/dispatch",
        "server/src/background",
        "sdk/src/machine",
    ];
    assert_free_of(&parts, PAST_THE_ENV);
}

#[test]
fn the_two_cores_only_compute() {
    assert_free_of(&["server/src/engine", "sdk/src/machine"], THE_EDGES);
}

/// A part may be one file (`machine.rs`) as long as it is small.
fn assert_free_of(parts: &[&str], words: &[&str]) {
    let mut offences = Vec::new();
    for part in parts {
        let dir = root().join(part);
        let single = dir.with_extension("rs");
        let files = if dir.is_dir() { rust_files(&dir) } else { vec![single] };
        let tests: Vec<PathBuf> = files.iter().flat_map(|file| test_modules(file)).collect();
        for file in files.iter().filter(|file| !tests.iter().any(|test| file.starts_with(test))) {
            let text =
                fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            for word in words_in(&text, words) {
                offences.push(format!("{}: {word}", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(offences.is_empty(), "must not be used there:\n{}", offences.join("\n"));
}

/// The files and folders of modules declared under `#[cfg(test)]`.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let stem = file.file_stem().unwrap();
    let dir = file.parent().unwrap();
    let dir = if stem == "mod" || stem == "lib" { dir.to_owned() } else { dir.join(stem) };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|pair| pair[0] == "#[cfg(test)]")
        .filter_map(|pair| pair[1].strip_suffix(';')?.split_once("mod ").map(|(_, name)| name))
        .flat_map(|name| [dir.join(format!("{name}.rs")), dir.join(name)])
        .collect()
}

/// Which of `words` the production code of a file uses.
fn words_in<'a>(text: &str, words: &[&'a str]) -> Vec<&'a str> {
    let code = expand_groups(&production_code(text));
    words.iter().copied().filter(|word| holds(&code, word)).collect()
}

/// Whether `word` stands in `code` by itself, not as a part of a longer name or path.
fn holds(code: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_name) && !after.is_some_and(is_name)
    })
}

/// The text without comments, without inline test modules, and with all white space single.
fn production_code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let Some(item) = lines.next() else { break };
            let indent = &item[..item.len() - item.trim_start().len()];
            if item.contains("mod ") && item.ends_with('{') {
                // rustfmt ends the module with a brace below its first letter.
                let end = format!("{indent}}}");
                lines.by_ref().find(|line| *line == end);
                continue;
            }
            code.push_str(item);
        } else {
            let comment = line.find("//").filter(|at| !line[..*at].ends_with(':'));
            code.push_str(&line[..comment.unwrap_or(line.len())]);
        }
        code.push(' ');
    }
    let code = code.split_whitespace().collect::<Vec<_>>().join(" ");
    code.replace(" ::", "::").replace(":: ", "::")
}

/// Writes each path of a grouped import in full, behind the code: `use a::{b, c::{d}};` brings
/// `a::b` and `a::c::d`.
fn expand_groups(code: &str) -> String {
    let mut paths = String::new();
    for group in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let mut prefixes = vec![String::new()];
        let mut path = String::new();
        for c in group.chars() {
            match c {
                '{' => prefixes.push(std::mem::take(&mut path)),
                ',' | '}' => {
                    if !path.trim().is_empty() {
                        let prefix: String = prefixes.iter().map(|p| p.trim()).collect();
                        paths.extend([" ", &prefix, path.trim()]);
                    }
                    path.clear();
                    if c == '}' {
                        prefixes.pop();
                    }
                }
                c => path.push(c),
            }
        }
    }
    format!("{code}{paths} ")
}

#[test]
fn a_forbidden_word_is_found_however_it_is_written() {
    let words = ["std::env", "tokio::spawn", "HashMap", "rand", "Instant::now"];
    let used = [
        ("let x = std::env::var(\"A\");", "std::env"),
        ("use std::{collections::BTreeMap, env};", "std::env"),
        ("use std::{\n    cmp::{max, min},\n    env::{self, var},\n};", "std::env"),
        ("use tokio::{select, spawn as go};", "tokio::spawn"),
        ("    tokio\n        ::spawn(async {});", "tokio::spawn"),
        ("#[cfg(test)]\nuse std::collections::HashMap;", "HashMap"),
        ("#[cfg(test)]\nmod tests {\n    fn a() {}\n}\nstruct A(HashMap<u8, u8>);", "HashMap"),
        ("let n = rand::random();", "rand"),
        ("std::time::Instant::now() // not in a comment", "Instant::now"),
    ];
    for (code, word) in used {
        assert_eq!(words_in(code, &words), [word], "{code}");
    }
    let unused = [
        "//! Never a HashMap.",
        "/// See [`std::env`].\nfn a() {}",
        "let operand = 1; let rand_of = 2;",
        "use crate::env::Env;",
        "self.env.spawn(async {});",
        "#[cfg(test)]\nmod tests {\n    use std::collections::HashMap;\n    fn a() {}\n}",
    ];
    for code in unused {
        assert_eq!(words_in(code, &words), [""; 0], "{code}");
    }
}
