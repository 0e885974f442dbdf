//! The run's own randomness: the same numbers at every replay, in every version.

use rand_core::RngCore;
use twox_hash::XxHash3_64;

/// xoshiro256++ by Blackman and Vigna. Ours, because a library's generator may change its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Xoshiro([u64; 4]);

impl Xoshiro {
    /// The run's default stream.
    pub(crate) fn new(seed: &[u8]) -> Self {
        match seed.try_into() {
            Ok(state) => Self::from_state(state),
            // One of another length is stretched: zeros would show in the first numbers.
            Err(_) => Self::named(seed, ""),
        }
    }

    fn from_state(bytes: [u8; 32]) -> Self {
        let mut state = [0; 4];
        for (word, chunk) in state.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
        }
        if state == [0; 4] {
            // The one state that the generator cannot leave.
            state[0] = 1;
        }
        Self(state)
    }

    /// A stream of its own for `name`: draws from it do not shift any other.
    pub(crate) fn named(seed: &[u8], name: &str) -> Self {
        let mut key = Vec::with_capacity(seed.len() + name.len());
        key.extend_from_slice(seed);
        key.extend_from_slice(name.as_bytes());
        let mut derived = [0; 32];
        for (index, chunk) in derived.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(
                &XxHash3_64::oneshot_with_seed(index as u64 + 1, &key).to_le_bytes(),
            );
        }
        Self::from_state(derived)
    }
}

impl RngCore for Xoshiro {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.0;
        let result = s0.wrapping_add(*s3).rotate_left(23).wrapping_add(*s0);
        let t = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= t;
        *s3 = s3.rotate_left(45);
        result
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        for chunk in dst.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden. The first stream is the reference implementation's for the state 1, 2, 3, 4.
    #[test]
    fn streams_never_change() {
        let mut seed = [0; 32];
        for (index, byte) in [1, 2, 3, 4].into_iter().enumerate() {
            seed[index * 8] = byte;
        }
        let mut rng = Xoshiro::new(&seed);
        let first: Vec<u64> = (0..5).map(|_| rng.next_u64()).collect();
        assert_eq!(
            first,
            [
                41_943_041,
                58_720_359,
                3_588_806_011_781_223,
                3_591_011_842_654_386,
                9_228_616_714_210_784_205
            ]
        );
        assert_ne!(Xoshiro::named(&seed, "a"), Xoshiro::named(&seed, "b"));
        assert_eq!(Xoshiro::named(&seed, "a").next_u64(), GOLDEN_A);
        // What servers draw today.
        assert_eq!(Xoshiro::new(&[7; 16]).next_u64(), GOLDEN_SHORT);
        assert_eq!(Xoshiro::named(&[7; 16], "a").next_u64(), GOLDEN_SHORT_A);
    }

    const GOLDEN_A: u64 = 175_757_731_450_817_219;
    const GOLDEN_SHORT: u64 = 10_388_545_726_136_904_878;
    const GOLDEN_SHORT_A: u64 = 9_601_270_064_257_380_244;

    #[test]
    fn a_short_seed_shows_in_all_of_the_first_numbers() {
        let first = |seed: [u8; 16]| {
            let mut rng = Xoshiro::new(&seed);
            [(); 4].map(|()| rng.next_u64())
        };
        let (one, other) = (first([1; 16]), first([2; 16]));
        for (one, other) in one.into_iter().zip(other) {
            let differ = (one ^ other).count_ones();
            assert!((12..=52).contains(&differ), "{one:x} {other:x}");
        }
    }
}
