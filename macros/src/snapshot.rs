//! Compares what is generated with what was read and found good.

use proc_macro2::TokenStream;
use std::path::Path;

/// `UPDATE_EXPANSIONS=1 cargo test -p onward-macros` writes the files anew.
pub(crate) fn assert_expands_to(tokens: TokenStream, name: &str) {
    let file = syn::parse2(tokens).expect("what is generated is a list of items");
    let expanded = prettyplease::unparse(&file);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/expansions/{name}.rs"));
    if std::env::var_os("UPDATE_EXPANSIONS").is_some() {
        std::fs::write(&path, &expanded).expect("the folder of expansions can be written to");
    }
    let expected = std::fs::read_to_string(&path).expect("every expansion has a file");
    assert!(
        expanded == expected,
        "{} is out of date; this is generated:\n{expanded}",
        path.display()
    );
}
