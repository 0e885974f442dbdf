//! The resolved graph against `deny.toml`, and the arrows between our own crates.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crate::{cargo, members, root};

/// A package that takes part in the build on Linux.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    license: String,
    /// Where it comes from, when not from the default registry.
    source: Option<String>,
}

/// The resolved graph. `cargo tree`, not `cargo metadata`: that one counts optional dependencies
/// that no feature turns on.
fn graph() -> Vec<Package> {
    let target = "x86_64-unknown-linux-gnu";
    let format = "{p}|{l}|";
    let tree =
        cargo(&["tree", "--workspace", "--target", target, "--prefix", "none", "--format", format]);
    let packages: BTreeSet<Package> = tree
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut fields = line.split('|');
            let (package, license) = (fields.next().unwrap(), fields.next().unwrap());
            let mut words = package.split(' ');
            let name = words.next().unwrap().to_owned();
            let version = words.next().unwrap().trim_start_matches('v').to_owned();
            let source = words.find(|word| *word != "(proc-macro)").map(str::to_owned);
            Package { name, version, license: license.to_owned(), source }
        })
        .collect();
    assert!(packages.len() > 100, "that is not our graph: {packages:?}");
    packages.into_iter().collect()
}

/// Shows on whose account a package is in the graph.
fn path_to(package: &Package) -> String {
    let spec = format!("{}@{}", package.name, package.version);
    let tree = cargo(&["tree", "--workspace", "--invert", &spec, "--depth", "3"]);
    format!("{spec} must not be in the graph, and is:\n{tree}")
}

/// The lines of an array in `deny.toml`: `key = [`, an element a line, `]`.
fn denied(section: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let elements: Vec<String> = text
        .lines()
        .skip_while(|line| *line != format!("[{section}]"))
        .skip_while(|line| *line != format!("{key} = ["))
        .skip(1)
        .take_while(|line| *line != "]")
        .map(|line| line.trim().trim_end_matches(',').to_owned())
        .filter(|line| !line.starts_with('#'))
        .collect();
    assert!(!elements.is_empty(), "deny.toml has no {key} in [{section}]");
    elements
}

#[test]
fn dependencies_have_licences_from_the_list() {
    let allowed: Vec<String> = denied("licenses", "allow")
        .iter()
        .map(|license| license.trim_matches('"').to_owned())
        .collect();
    let offenders: Vec<Package> =
        graph().into_iter().filter(|package| !is_allowed(&package.license, &allowed)).collect();
    assert!(offenders.is_empty(), "not on the list of deny.toml: {offenders:#?}");
    println!("SKIP advisories: their database is online; `cargo deny check advisories` reads it");
}

#[test]
fn dependencies_hold_no_banned_crate() {
    let graph = graph();
    for ban in denied("bans", "deny") {
        let spec = ban.split('"').nth(1).unwrap_or_else(|| panic!("no crate in {ban}"));
        let (name, versions) = spec.split_once(':').unwrap_or((spec, ""));
        let found: Vec<&Package> = graph.iter().filter(|package| package.name == name).collect();
        if ban.contains("deny-multiple-versions = true") {
            assert!(found.len() <= 1, "one {name} is enough: {found:#?}");
            continue;
        }
        let from: u64 = versions.trim_start_matches(">=").parse().unwrap_or(0);
        for package in found {
            let major: u64 = package.version.split('.').next().unwrap().parse().unwrap();
            assert!(major < from, "{}", path_to(package));
        }
    }
}

#[test]
fn dependencies_come_from_the_default_registry() {
    let root = format!("({}/", root().display());
    let strangers: Vec<Package> = graph()
        .into_iter()
        .filter(|package| package.source.as_ref().is_some_and(|source| !source.starts_with(&root)))
        .collect();
    assert!(strangers.is_empty(), "{strangers:#?}");
}

/// The arrows of the map; whoever is not named is a top that nobody depends on and may use all.
#[test]
fn dependencies_between_our_crates_point_one_way() {
    let arrows: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("onward-proto", &[][..]),
        ("onward-macros", &[]),
        ("onward-models", &[]),
        ("onward-test-postgres", &[]),
        ("onward", &["onward-macros", "onward-proto"]),
        ("onward-server", &["onward-proto"]),
        ("onward-cli", &["onward-proto", "onward-server", "onward"]),
        ("onward-checker", &["onward-proto"]),
        ("onward-programs", &["onward-checker", "onward-proto", "onward-server", "onward"]),
        (
            "onward-simulation",
            &["onward-checker", "onward-programs", "onward-proto", "onward-server", "onward"],
        ),
        (
            "onward-network",
            &[
                "onward-checker",
                "onward-programs",
                "onward-proto",
                "onward-server",
                "onward-simulation",
                "onward",
            ],
        ),
        (
            "onward-fuzzing",
            &[
                "onward-checker",
                "onward-cli",
                "onward-programs",
                "onward-proto",
                "onward-server",
                "onward-simulation",
                "onward",
            ],
        ),
        ("onward-corpus", &["onward-proto", "onward-server", "onward"]),
        (
            "onward-system-tests",
            &["onward-proto", "onward-server", "onward-test-postgres", "onward"],
        ),
        (
            "onward-chaos",
            &[
                "onward-checker",
                "onward-programs",
                "onward-server",
                "onward-system-tests",
                "onward-test-postgres",
                "onward",
            ],
        ),
        ("onward-example-hello", &["onward"]),
        ("onward-example-orders", &["onward"]),
    ]);
    let tops = ["onward-bench", "xtask"];
    for member in members() {
        for dependency in member.dependencies.iter().filter(|d| d.path.is_some()) {
            let arrow = format!("{} -> {}", member.name, dependency.name);
            assert!(!tops.contains(&dependency.name.as_str()), "{arrow}");
            if dependency.kind.as_deref() == Some("dev") {
                // Tests may start a database. `server` never sees the SDK, not even there.
                assert!(member.name != "onward-server" || dependency.name != "onward", "{arrow}");
            } else if let Some(allowed) = arrows.get(member.name.as_str()) {
                assert!(allowed.contains(&dependency.name.as_str()), "{arrow}");
            } else {
                assert!(tops.contains(&member.name.as_str()), "{arrow}: who is {}?", member.name);
            }
        }
    }
}

/// Whether an SPDX expression can be met with the licences of the list.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    // Old manifests write a slash for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let met = any_of(&mut rest, allowed);
    met && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = all_of(rest, allowed);
    while let ["OR", tail @ ..] = *rest {
        *rest = tail;
        met |= all_of(rest, allowed);
    }
    met
}

fn all_of(rest: &mut &[&str], allowed: &[String]) -> bool {
    let mut met = license(rest, allowed);
    while let ["AND", tail @ ..] = *rest {
        *rest = tail;
        met &= license(rest, allowed);
    }
    met
}

fn license(rest: &mut &[&str], allowed: &[String]) -> bool {
    match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let met = any_of(rest, allowed);
            let closed = rest.first() == Some(&")");
            *rest = rest.get(1..).unwrap_or_default();
            met && closed
        }
        [name, "WITH", exception, tail @ ..] => {
            *rest = tail;
            allowed.contains(&format!("{name} WITH {exception}"))
        }
        [name, tail @ ..] => {
            *rest = tail;
            allowed.iter().any(|license| license == name)
        }
        [] => false,
    }
}

#[test]
fn a_licence_is_met_as_its_expression_says() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("", false),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR MIT", true),
        ("ISC AND (GPL-3.0 OR MIT)", true),
        ("ISC AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("Apache-2.0", false),
        ("MIT OR", true),
        ("(MIT", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}
