//! The run's own randomness.

use std::ops::Range;

use rand_core::RngCore;

use super::Ctx;

/// Random numbers that are the same at every replay. It works wherever a [`rand_core::RngCore`]
/// does; its own methods never change their algorithm.
#[derive(Debug)]
pub struct Rng<'c> {
    ctx: &'c Ctx,
    name: Option<&'c str>,
}

impl<'c> Rng<'c> {
    pub(super) fn new(ctx: &'c Ctx, name: Option<&'c str>) -> Self {
        Self { ctx, name }
    }

    /// A number of the range, each equally likely.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn range(&mut self, range: Range<u64>) -> u64 {
        assert!(range.start < range.end, "an empty range has no numbers");
        let span = range.end - range.start;
        // Lemire's method: multiply, and draw again in the small part that would be unfair.
        let unfair = span.wrapping_neg() % span;
        loop {
            let wide = u128::from(self.next_u64()) * u128::from(span);
            if wide as u64 >= unfair {
                return range.start + (wide >> 64) as u64;
            }
        }
    }

    /// A number from 0 up to but not including 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.fraction() < probability
    }

    /// One of the items, if there is any.
    pub fn choose<'t, T>(&mut self, items: &'t [T]) -> Option<&'t T> {
        if items.is_empty() {
            return None;
        }
        items.get(self.range(0..items.len() as u64) as usize)
    }

    /// Puts the items in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.range(0..last as u64 + 1) as usize);
        }
    }
}

impl RngCore for Rng<'_> {
    fn next_u32(&mut self) -> u32 {
        self.ctx.core.with_rng(self.name, RngCore::next_u32)
    }

    fn next_u64(&mut self) -> u64 {
        self.ctx.core.with_rng(self.name, RngCore::next_u64)
    }

    fn fill_bytes(&mut self, dst: &mut [u8]) {
        self.ctx.core.with_rng(self.name, |rng| rng.fill_bytes(dst));
    }
}
