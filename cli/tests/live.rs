//! `onward dev` as a process: what it prints, whom it lets in, how it ends.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, ChildStdout, ExitStatus, Output, Stdio},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use support::{onward, stderr, stdout};

/// A development server on free ports. It is killed when a test fails.
struct Dev {
    child: Child,
    stdout: BufReader<ChildStdout>,
    banner: String,
    grpc: String,
    http: String,
}

impl Dev {
    fn start(data_dir: &Path) -> Self {
        let mut child = onward()
            .args(["dev", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        // The last line of the banner says what to do next.
        while !banner.contains("Next: ") {
            assert_ne!(stdout.read_line(&mut banner).unwrap(), 0, "it ended: {banner}");
        }
        let after = |label: &str| {
            let line = banner.lines().find_map(|line| line.trim().strip_prefix(label)).unwrap();
            line.trim().strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned()
        };
        let (grpc, http) = (after("grpc"), after("health"));
        Self { child, stdout, banner, grpc, http }
    }

    /// Runs `onward workflow` against this server.
    fn workflow(&self, args: &[&str]) -> Output {
        onward()
            .arg("workflow")
            .args(args)
            .env("ONWARD_ADDRESS", format!("http://{}", self.grpc))
            .output()
            .unwrap()
    }

    /// The JSON of a command that must succeed.
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.workflow(&[args, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ended, and what it logged.
    fn end(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "nothing follows the banner");
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn dev_prints_what_it_serves_and_logs_to_stderr() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let dev = Dev::start(&data);
    let file = data.join("onward.db");
    for part in [
        &format!("  grpc     http://{}\n", dev.grpc),
        &format!("  metrics  http://{}/metrics\n", dev.http),
        &format!("  store    sqlite://{} (sqlite)\n", file.display()),
        &format!("Next: onward workflow list --address http://{}\n", dev.grpc),
    ] {
        assert!(dev.banner.contains(part.as_str()), "no {part:?} in\n{}", dev.banner);
    }
    assert!(!dev.grpc.ends_with(":0"), "the real port is printed");
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    dev.signal(Signal::TERM);
    let (_, log) = dev.end();
    assert!(log.contains("starting") && log.contains("stopped"), "{log}");
}

#[test]
fn both_stop_signals_drain_and_end_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let directory = tempfile::tempdir().unwrap();
        let dev = Dev::start(directory.path());
        dev.signal(signal);
        let (status, log) = dev.end();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.contains("draining"), "{log}");
    }
}

#[test]
fn a_taken_port_is_named_with_its_flag() {
    let directory = tempfile::tempdir().unwrap();
    let first = Dev::start(&directory.path().join("first"));
    for (flag, address, other) in
        [("--listen", &first.grpc, "--http-listen"), ("--http-listen", &first.http, "--listen")]
    {
        let output = onward()
            .args(["dev", flag, address, other, "127.0.0.1:0", "--log", "off", "--data-dir"])
            .arg(directory.path().join("second"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let port = address.rsplit(':').next().unwrap();
        let text = stderr(&output);
        assert!(text.starts_with(&format!("port {port} is taken: ")), "{text}");
        assert!(text.ends_with(&format!("choose another with {flag}\n")), "{text}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn a_run_is_started_shown_and_ended() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let started =
        dev.json(&["start", "greet", "--id", "g1", "--queue", "people", "--input", "\"Ada\""]);
    assert_eq!((&started["workflow_id"], &started["started"]), (&"g1".into(), &true.into()));

    let again = dev.workflow(&["start", "greet", "--id", "g1"]);
    assert_eq!((again.status.code(), stdout(&again)), (Some(1), ""));
    assert!(stderr(&again).contains("g1"), "{}", stderr(&again));
    assert_eq!(stderr(&again).lines().count(), 1);
    let existing = dev.json(&["start", "greet", "--id", "g1", "--conflict", "use-existing"]);
    assert_eq!((&existing["run_id"], &existing["started"]), (&started["run_id"], &false.into()));

    let shown = dev.workflow(&["show", "g1"]);
    assert!(
        stdout(&shown).starts_with("g1  running\n  waits for  no worker polls queue people\n"),
        "{shown:?}"
    );
    dev.workflow(&["signal", "g1", "hello", "--input", "{\"n\": 1.10}"]);
    let shown = dev.json(&["show", "g1"]);
    assert_eq!(shown["arguments"], serde_json::json!(["Ada"]));
    assert_eq!(shown["inbox"][0]["signal_received"]["arguments"][0]["n"], 1.10);

    dev.workflow(&["terminate", "g1", "--reason", "enough"]);
    let result = dev.workflow(&["result", "g1"]);
    assert_eq!(result.status.code(), Some(3));
    assert_eq!(stderr(&result), "workflow g1 was terminated: enough\n");

    let list = dev.json(&["list", "--status", "terminated"]);
    assert_eq!(list["workflows"][0]["run_id"], started["run_id"]);
    assert_eq!(dev.json(&["list", "--status", "running"])["workflows"], serde_json::json!([]));
    let history = dev.json(&["history", "g1", "--follow"]);
    assert_eq!(history["events"][2]["workflow_execution_terminated"]["reason"], "enough");
    assert_eq!(history["events"].as_array().unwrap().len(), 3);
}

#[test]
fn an_unknown_workflow_and_a_closed_one_are_one_line_each() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    dev.json(&["start", "greet", "--id", "closed"]);
    dev.json(&["terminate", "closed"]);
    for args in [
        &["show", "nope"][..],
        &["history", "nope"],
        &["result", "nope"],
        &["signal", "nope", "hello"],
        &["cancel", "nope"],
        &["terminate", "nope"],
        &["signal", "closed", "hello"],
        &["show", "closed", "--namespace", "elsewhere"],
    ] {
        let output = dev.workflow(args);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""), "{args:?}: {output:?}");
        let named = args.last().filter(|last| **last == "elsewhere").unwrap_or(&args[1]);
        assert!(stderr(&output).contains(named), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_server_finds_its_runs_again_after_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let started = dev.json(&["start", "greet", "--id", "g1"]);
    dev.signal(Signal::KILL);
    dev.end();
    let dev = Dev::start(directory.path());
    assert_eq!(dev.json(&["show", "g1"])["info"]["run_id"], started["run_id"]);
}

#[test]
fn a_second_server_on_the_same_data_names_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    let output = onward()
        .args([
            "dev",
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "off",
            "--log",
            "off",
            "--data-dir",
        ])
        .arg(directory.path())
        .output()
        .unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
    let pid = dev.child.id().to_string();
    assert!(
        stderr(&output).split(|c: char| !c.is_ascii_digit()).any(|word| word == pid),
        "{}",
        stderr(&output)
    );
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}

/// What a command writes to a terminal.
fn on_terminal(dev: &Dev, args: &[&str], setting: (&str, &str)) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let side = std::fs::OpenOptions::new().read(true).write(true).open(name).unwrap();
    let status = onward()
        .arg("workflow")
        .args(args)
        .args(["--address", &dev.grpc])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env(setting.0, setting.1)
        .stdout(side)
        .status()
        .unwrap();
    assert!(status.success());
    let mut text = Vec::new();
    // A terminal whose other side is closed ends with an error, after all that was written.
    let _ = std::fs::File::from(terminal).read_to_end(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path());
    dev.json(&["start", "greet", "--id", "g1"]);
    for args in [&["show", "g1"][..], &["history", "g1"]] {
        let coloured = on_terminal(&dev, args, ("NO_COLOR", ""));
        assert!(coloured.contains("\x1b[") && coloured.contains("greet"), "{coloured:?}");
        for setting in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let plain = on_terminal(&dev, args, setting);
            assert!(!plain.contains('\x1b') && plain.contains("greet"), "{plain:?}");
        }
        assert!(!stdout(&dev.workflow(args)).contains('\x1b'));
    }
}
