//! Each crate could be packaged as it stands.

use std::{fs, path::Path};

use crate::{cargo, members, root, rust_files};

#[test]
fn every_crate_says_what_it_is() {
    for member in members() {
        let description = member.description.unwrap_or_default();
        assert!(description.len() > 10, "{} has no description", member.name);
        assert_eq!(member.license.as_deref(), Some("MIT OR Apache-2.0"), "{}", member.name);
    }
    for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(root().join(license).exists(), "{license} is missing");
    }
}

/// Unsafe code is forbidden by the table of lints in the root manifest, which binds those who say so.
#[test]
fn every_crate_has_the_lints_of_the_workspace() {
    let root_manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(root_manifest.contains("\nunsafe_code = \"forbid\"\n"));
    for member in members() {
        let manifest = fs::read_to_string(&member.manifest_path).unwrap();
        assert!(manifest.contains("\n[lints]\nworkspace = true\n"), "{}", member.name);
    }
}

/// A file that is compiled in from outside its crate is there in a checkout and missing in a package.
#[test]
fn every_crate_packages_the_files_it_includes() {
    for member in members() {
        let list = cargo(&["package", "--list", "--allow-dirty", "-p", &member.name]);
        let dir = member.dir().canonicalize().unwrap();
        for file in rust_files(&dir.join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            for included in ["include_str!(\"", "include_bytes!(\""]
                .iter()
                .flat_map(|call| text.split(call).skip(1))
                .filter_map(|rest| rest.split('"').next())
            {
                let path = file.parent().unwrap().join(included);
                let packaged = path
                    .canonicalize()
                    .unwrap_or_else(|error| panic!("{}: {included}: {error}", file.display()))
                    .strip_prefix(&dir)
                    .is_ok_and(|path| list.lines().any(|line| Path::new(line) == path));
                assert!(packaged, "{} does not package {included}", member.name);
            }
        }
    }
}
