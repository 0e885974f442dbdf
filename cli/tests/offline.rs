//! What the binary does without a server: wrong usage, nobody to talk to, closed pipes.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::Read,
    net::TcpListener,
    process::{Output, Stdio},
};

use support::{onward, stderr, stdout};

fn run(args: &[&str]) -> Output {
    onward().args(args).output().unwrap()
}

/// A port that refuses connections: it was free a moment ago.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (args, hint) in [
        (&["workflow"][..], "Usage: onward workflow"),
        (&["fly"], "unrecognized subcommand 'fly'"),
        (&["workflow", "show"], "<ID>"),
        (
            &["workflow", "start", "greet", "--input", "Ada"],
            r#"a string needs its quotes, as in '"Ada"'"#,
        ),
        (&["workflow", "start", "greet", "--memo", "note"], "write it as name=JSON"),
        (
            &["workflow", "start", "greet", "--run-timeout", "30"],
            "unknown unit; use ms, s, m, h or d",
        ),
        (
            &["workflow", "start", "greet", "--reuse", "maybe"],
            "[possible values: allow, allow-failed-only, reject]",
        ),
        (&["workflow", "list", "--status", "open"], "[possible values: running,"),
        (&["workflow", "show", "x", "--run-id", "7"], "invalid value '7' for '--run-id <UUID>'"),
        (&["workflow", "list", "--address", "https://h:1"], "it must begin with http://"),
        (&["dev", "--listen", "7450"], "write it as 127.0.0.1:7450"),
        (&["server"], "no store: name one with --store"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(stderr(&output).contains(hint), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn a_missing_server_is_one_exact_line() {
    let port = closed_port();
    let address = format!("http://127.0.0.1:{port}");
    let expected = format!(
        "cannot reach {address}: connection refused; start one with 'onward dev' or set ONWARD_ADDRESS\n"
    );
    for args in [
        &["workflow", "list"][..],
        &["workflow", "start", "greet"],
        &["workflow", "execute", "greet", "--input", "-5"],
        &["workflow", "show", "x", "--json"],
        &["workflow", "history", "x", "--follow"],
        &["workflow", "result", "x"],
        &["workflow", "signal", "x", "go"],
        &["workflow", "cancel", "x"],
        &["workflow", "terminate", "x"],
    ] {
        let output = onward().args(args).env("ONWARD_ADDRESS", &address).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(stderr(&output), expected, "{args:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
    }
    // The flag wins over the environment, and the scheme may be left out.
    let output = onward()
        .args(["workflow", "list", "--address", &format!("127.0.0.1:{port}/")])
        .env("ONWARD_ADDRESS", "http://nowhere.invalid:1")
        .output()
        .unwrap();
    assert_eq!(stderr(&output), expected);
}

#[test]
fn a_listener_that_is_no_onward_server_is_one_line_too() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).unwrap();
        std::io::Write::write_all(
            &mut stream,
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        )
        .unwrap();
    });
    let output = run(&["workflow", "list", "--address", &address]);
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&address), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[test]
fn other_machines_are_let_in_only_when_asked() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().to_str().unwrap();
    for args in [
        ["--listen", "0.0.0.0:0", "--http-listen", "off"],
        ["--listen", "127.0.0.1:0", "--http-listen", "[::]:0"],
    ] {
        let output = onward().args(["dev", "--data-dir", data]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains("lets other machines in"), "{}", stderr(&output));
        assert!(stderr(&output).contains("--insecure"), "{}", stderr(&output));
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for args in [&["version"][..], &["--help"], &["workflow", "start", "--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = onward().args(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[test]
fn a_closed_stderr_ends_quietly_too() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let address = format!("http://127.0.0.1:{}", closed_port());
    let status =
        onward().args(["workflow", "list", "--address", &address]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}

#[test]
fn the_version_names_the_commit() {
    for args in [["version"], ["--version"]] {
        let output = run(&args);
        let text = stdout(&output);
        assert!(
            text.starts_with(concat!("onward ", env!("CARGO_PKG_VERSION"), " (commit ")),
            "{text}"
        );
    }
    let output = run(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert!(version["commit"].as_str().is_some_and(|commit| !commit.is_empty()));
    assert_eq!(version["protocol"], onward_proto::PROTOCOL);
}

#[test]
fn a_wrong_settings_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "store = 'sqlite:///tmp/x.db'\nlistn = '127.0.0.1:0'\n").unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(&["server", "--config", path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains(path) && stderr(&output).contains("listn"),
        "{}",
        stderr(&output)
    );
}
