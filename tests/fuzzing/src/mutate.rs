//! Inputs that are nearly others.

/// Numbers at which something tends to change, as one byte.
const EDGES: [u8; 9] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'\n', 0x20];
/// Most bytes that one change adds.
const MOST: usize = 64;

/// Changes an input a little, one to four times; `other` is what parts may be taken from.
pub fn mutate(rng: &mut fastrand::Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(0..=input.len());
        let rest = input.len() - at;
        match rng.u8(0..9) {
            0 => input.truncate(at),
            1 if rest > 0 => input[at] ^= 1 << rng.u8(0..8),
            2 if rest > 0 => input[at] = EDGES[rng.usize(0..EDGES.len())],
            3 if rest > 0 => input[at] = input[at].wrapping_add(rng.u8(0..5)).wrapping_sub(2),
            4 => drop(input.drain(at..at + rng.usize(0..=rest.min(MOST)))),
            5 => input.insert(at, rng.u8(..)),
            6 => {
                let again = input[at..at + rng.usize(0..=rest.min(MOST))].to_vec();
                input.splice(at..at, again);
            }
            7 if !other.is_empty() => {
                let from = rng.usize(0..other.len());
                let to = from + rng.usize(0..=(other.len() - from).min(MOST));
                input.splice(at..at, other[from..to].iter().copied());
            }
            8 if rest > 0 => {
                let to = rng.usize(0..input.len());
                input.swap(at, to);
            }
            _ => input
                .extend(std::iter::repeat_n(EDGES[rng.usize(0..EDGES.len())], rng.usize(1..12))),
        }
    }
}
