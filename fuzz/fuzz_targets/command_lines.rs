#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (onward_fuzzing::target("command_lines").take)(input));
