//! The corpus of every fuzzer, and what is nearly in it, without a fuzzer.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use onward_fuzzing::{TARGETS, Target, mutate};

/// An input that takes longer hangs.
const HANGS: Duration = Duration::from_secs(30);

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn corpus(target: Target) -> Vec<Vec<u8>> {
    let dir = fuzz().join("corpus").join(target.name);
    names(&dir).iter().map(|name| fs::read(dir.join(name)).unwrap()).collect()
}

#[test]
fn every_target_has_a_fuzzer_and_a_small_corpus() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    targets.sort();
    assert_eq!(names(&fuzz().join("corpus")), targets);
    let files: Vec<_> = targets.iter().map(|name| format!("{name}.rs")).collect();
    assert_eq!(names(&fuzz().join("fuzz_targets")), files);
    for target in TARGETS {
        let name = target.name;
        assert!(manifest.contains(&format!("\nname = \"{name}\"\n")), "{name} has no binary");
        let code = fs::read_to_string(fuzz().join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(code.contains(&format!("target(\"{name}\")")), "{name} fuzzes something else");
        let corpus = corpus(*target);
        assert!((2..=80).contains(&corpus.len()), "{name}: {} files", corpus.len());
        let largest = corpus.iter().map(Vec::len).max();
        assert!(largest < Some(16 << 10), "{name}: {largest:?} bytes");
    }
}

/// What is under way: since when, and what it was fed.
type Now = Arc<Mutex<(Instant, Target, Vec<u8>)>>;

#[test]
fn every_target_takes_what_is_nearly_in_its_corpus() {
    let now: Now = Arc::new(Mutex::new((Instant::now(), TARGETS[0], Vec::new())));
    let feeding = {
        let now = Arc::clone(&now);
        thread::Builder::new().stack_size(8 << 20).spawn(move || feed(&now)).unwrap()
    };
    while !feeding.is_finished() {
        thread::sleep(Duration::from_millis(50));
        let (since, target, input) = now.lock().unwrap().clone();
        assert!(since.elapsed() < HANGS, "{} hangs with {}", target.name, hex(&input));
    }
    feeding.join().unwrap();
}

fn feed(now: &Now) {
    for target in TARGETS {
        let began = Instant::now();
        let corpus = corpus(*target);
        let take = |input: Vec<u8>| {
            *now.lock().unwrap() = (Instant::now(), *target, input.clone());
            if let Err(wrong) = target.try_take(&input) {
                panic!("{wrong}\nfed with {}", hex(&input));
            }
        };
        corpus.iter().cloned().for_each(take);
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..target.inputs {
            let mut input = corpus[rng.usize(0..corpus.len())].clone();
            let other = &corpus[rng.usize(0..corpus.len())];
            mutate(&mut rng, &mut input, other);
            take(input);
        }
        let (files, ms) = (corpus.len(), began.elapsed().as_millis());
        println!("{}: {files} files, {} inputs, {ms} ms", target.name, target.inputs);
    }
}

fn hex(input: &[u8]) -> String {
    format!("{:x}", Bytes::copy_from_slice(input))
}
