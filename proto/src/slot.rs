//! The fixed hash bucket of a run.

use std::fmt;

use twox_hash::XxHash3_64;

use crate::NamespaceId;

/// How many slots there are, for ever.
pub const SLOTS: u16 = 1024;

/// The bucket of a workflow id: XXH3-64 of namespace id and workflow id, scaled to 0..1024.
///
/// It never changes, so a range of slots can move between nodes while its runs stay addressable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of this number.
    ///
    /// # Panics
    /// If `number` is not below [`SLOTS`].
    pub const fn new(number: u16) -> Self {
        assert!(number < SLOTS, "there are 1024 slots");
        Self(number)
    }

    /// The slot of a workflow id.
    pub fn of(namespace: NamespaceId, workflow_id: &str) -> Self {
        let mut key = Vec::with_capacity(16 + workflow_id.len());
        key.extend_from_slice(namespace.uuid().as_bytes());
        key.extend_from_slice(workflow_id.as_bytes());
        let hash = XxHash3_64::oneshot(&key);
        Self(((u128::from(hash) * u128::from(SLOTS)) >> 64) as u16)
    }

    /// The number, 0 to 1023.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEFAULT_NAMESPACE;

    /// Golden: these may never change, stored runs are addressed by them.
    #[test]
    fn slots_are_fixed_for_life() {
        for (workflow_id, slot) in [
            ("", 632),
            ("a", 109),
            ("order-42", 406),
            ("Grüße", 486),
            ("x".repeat(1000).as_str(), 167),
        ] {
            assert_eq!(Slot::of(DEFAULT_NAMESPACE, workflow_id).get(), slot, "{workflow_id}");
        }
    }

    #[test]
    fn slots_spread_evenly() {
        let mut counts = vec![0_u32; usize::from(SLOTS)];
        for n in 0..102_400 {
            counts[usize::from(Slot::of(DEFAULT_NAMESPACE, &format!("order-{n}")).get())] += 1;
        }
        assert!(counts.iter().all(|&count| (50..=170).contains(&count)), "{counts:?}");
    }
}
