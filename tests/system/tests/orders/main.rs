//! The example that is a program: a file of orders through real processes, two of which are killed.
//! `scripts/demo` does the same at full size.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use onward_proto::v1::history_event::Attributes;
use onward_system_tests::{
    Process,
    Server,
    StoreUrl,
    program,
    within,
    workflows::five_steps, // any type will do to read a history
};

/// Lines of the shipped file, with its header: orders of all kinds, all open at once.
const LINES: usize = 101;

/// A shop in a directory: the books, the file, and the program that reads both.
struct Shop {
    dir: PathBuf,
    address: String,
}

impl Shop {
    fn args(&self, command: &str) -> Vec<String> {
        let mut args = vec![command.to_owned()];
        args.extend(["--ledger".to_owned(), self.dir.join("ledger.db").display().to_string()]);
        if ["worker", "submit"].contains(&command) {
            args.extend(["--address".to_owned(), self.address.clone()]);
        }
        if ["submit", "check"].contains(&command) {
            args.push(self.dir.join("orders.csv").display().to_string());
        }
        args
    }

    fn start(&self, command: &str) -> Process {
        let log = self.dir.join(format!("{command}.log"));
        Process::start(&program("orders"), &self.args(command), &log)
    }

    async fn run(&self, command: &str) -> Output {
        let output = tokio::process::Command::new(program("orders"))
            .args(self.args(command))
            .kill_on_drop(true)
            .output();
        within(60, command, output).await.unwrap()
    }

    /// What a command prints that must succeed.
    async fn prints(&self, command: &str) -> String {
        let output = self.run(command).await;
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{command}: {text}");
        text
    }

    /// Waits until so many orders have ended and some are open; gives how many are.
    async fn wait_for(&self, terminal: u64, open: u64) -> u64 {
        let reached = async {
            loop {
                let output = self.run("progress").await;
                // Before the submitter has made the books there is no progress.
                let text = String::from_utf8(output.stdout).unwrap();
                let mut numbers =
                    text.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
                let mut next = || numbers.next().map_or(0, |number| number.parse().unwrap());
                let (ended, still_open) = (next(), next());
                if ended >= terminal && still_open >= open {
                    return still_open;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(60, "the orders come so far", reached).await
    }
}

/// The number before a word in the last line of the check.
fn figure(check: &str, word: &str) -> u64 {
    let line = check.lines().last().unwrap();
    let before = line.split(word).next().unwrap().trim_end();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_survive_a_crash_of_server_and_worker_and_a_second_submission() {
    let dir = tempfile::tempdir().unwrap();
    let shipped =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../worker-examples/orders/orders.csv");
    let shipped = std::fs::read_to_string(shipped).unwrap();
    let lines: Vec<&str> = shipped.lines().take(LINES).collect();
    std::fs::write(dir.path().join("orders.csv"), lines.join("\n") + "\n").unwrap();
    let store = StoreUrl::Sqlite(dir.path().join("data"));
    let mut server = Server::start(store, dir.path()).await;
    let shop = Shop { dir: dir.path().to_owned(), address: server.address() };

    let mut worker = shop.start("worker");
    let mut submit = shop.start("submit");
    shop.wait_for(0, 40).await;
    server.kill().await;
    server.start_again().await;
    let open = shop.wait_for(5, 1).await;
    assert!(worker.is_running() && open > 0);
    worker.kill().await;
    let _worker = shop.start("worker");
    let status = within(90, "all orders end", submit.ended()).await;
    assert!(status.success(), "the submission failed: {status}");

    let check = shop.prints("check").await;
    assert_eq!(figure(&check, "lines,"), LINES as u64 - 1);
    for word in ["completed,", "rejected,", "retries,"] {
        assert!(figure(&check, word) > 0, "the file holds too little: {check}");
    }
    let again = shop.prints("submit").await;
    let started = again.lines().find(|line| line.contains("runs started")).unwrap();
    assert!(started.trim_end().ends_with(" 0"), "{started}");
    assert_eq!(shop.prints("check").await, check, "submitting a file again changes nothing");

    // The parcel leaves when the payment has settled, and never before.
    let order_id = lines[1].split(',').next().unwrap();
    let handle = server.client().handle::<five_steps>(order_id);
    let events = handle.history().await.unwrap().events;
    let at = |is: fn(&Attributes) -> bool| {
        let event = events.iter().find(|event| event.attributes.as_ref().is_some_and(is)).unwrap();
        event.time_us
    };
    let settling = at(|it| matches!(it, Attributes::TimerStarted(_)));
    let settled = at(|it| matches!(it, Attributes::TimerFired(_)));
    let shipped =
        at(|it| matches!(it, Attributes::ActivityScheduled(it) if it.activity_type == "ship"));
    assert!(settled - settling >= 5_000_000, "settled {} µs early", settled - settling);
    assert!(settled <= shipped);
    server.assert_no_panics();
    server.stop().await;
}
