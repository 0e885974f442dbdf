//! Ids as types, so that a run id never passes for a request id.

use std::fmt;

use uuid::Uuid;

use crate::Slot;

/// An id on the wire that is not 16 bytes long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidId {
    /// What the id names, for example `run_id`.
    pub what: &'static str,
    /// How many bytes came.
    pub len: usize,
}

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must have 16 bytes, got {}", self.what, self.len)
    }
}

impl std::error::Error for InvalidId {}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID.
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// Reads 16 bytes from the wire.
            ///
            /// # Errors
            /// [`InvalidId`] for any other length.
            pub fn from_wire(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes)
                    .map(Self)
                    .map_err(|_| InvalidId { what: $what, len: bytes.len() })
            }

            /// The 16 bytes for the wire.
            pub fn to_wire(self) -> bytes::Bytes {
                bytes::Bytes::copy_from_slice(self.0.as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

uuid_id!(
    /// One attempt under a workflow id: a UUID v7 whose last ten bits are the slot, so that every
    /// token and call can be routed without a look-up.
    RunId,
    "run_id"
);
uuid_id!(
    /// Names one mutating request; asking twice with the same one gives the first answer.
    RequestId,
    "request_id"
);
uuid_id!(
    /// An isolation boundary, never used again once dropped.
    NamespaceId,
    "namespace_id"
);

/// The namespace that exists from the first start of a server, named `default`.
pub const DEFAULT_NAMESPACE: NamespaceId =
    NamespaceId(Uuid::from_u128(0x6f6e_7761_7264_4000_8000_6465_6661_756c));

impl RunId {
    /// Makes the id of a run that starts at `unix_ms` in `slot`, from 62 random bits.
    ///
    /// ```
    /// # use onward_proto::{RunId, Slot};
    /// let run = RunId::new(1_790_000_000_000, 7, Slot::new(513));
    /// assert_eq!(run.slot(), Slot::new(513));
    /// ```
    pub fn new(unix_ms: u64, random: u64, slot: Slot) -> Self {
        let low = (random << 10 | u64::from(slot.get())) & 0x3fff_ffff_ffff_ffff;
        let rand_a = random >> 52 & 0xfff;
        let high = unix_ms << 16 | 0x7000 | rand_a;
        Self(Uuid::from_u64_pair(high, 0x8000_0000_0000_0000 | low))
    }

    /// The slot that the run lives in.
    pub fn slot(self) -> Slot {
        let (_, low) = self.0.as_u64_pair();
        Slot::new((low & 0x3ff) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_id_is_a_uuid_v7_that_carries_its_slot() {
        for slot in [0, 1, 511, 1023] {
            for random in [0, u64::MAX, 0x0123_4567_89ab_cdef] {
                let run = RunId::new(1_790_000_000_123, random, Slot::new(slot));
                assert_eq!(run.slot().get(), slot);
                assert_eq!(run.uuid().get_version_num(), 7);
                assert_eq!(run.uuid().get_variant(), uuid::Variant::RFC4122);
            }
        }
    }

    #[test]
    fn run_ids_sort_by_time() {
        let early = RunId::new(1_000, u64::MAX, Slot::new(1023));
        let late = RunId::new(1_001, 0, Slot::new(0));
        assert!(early < late);
    }

    #[test]
    fn an_id_of_the_wrong_length_is_named() {
        let error = RunId::from_wire(&[0; 15]).unwrap_err();
        assert_eq!(error.to_string(), "run_id must have 16 bytes, got 15");
    }
}
