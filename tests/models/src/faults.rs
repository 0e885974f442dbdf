//! Rules that can be taken out, to see what they are there for.

/// What to get wrong.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// A batch does not ask for its epoch.
    pub commit_without_epoch: bool,
    /// A batch does not ask whether the newest batch is the one that its writer knows.
    pub commit_without_previous: bool,
    /// Takeover and resolve raise the epoch and write no batch row.
    pub owner_change_without_batch_row: bool,
    /// A resolve reads whether the batch is in, and writes nothing.
    pub resolve_only_reads: bool,
    /// A resolve goes by the epoch, whoever owns it.
    pub resolve_of_any_owner: bool,
    /// A release goes by the epoch, whoever owns it.
    pub release_of_any_owner: bool,
    /// A client is told before its batch is durable.
    pub ack_before_commit: bool,
    /// A batch without a reply is taken for lost: the lane loads again without a resolve.
    pub guess_instead_of_resolve: bool,
    /// A thief goes by the row's lease and its own clock, which is a second ahead.
    pub take_by_own_clock: bool,
    /// A lease counts from the reply, not from when its renewal was sent.
    pub lease_from_reply: bool,
    /// A lease that was asked for twice counts from the second attempt, though the first may have
    /// been carried out.
    pub lease_from_last_attempt: bool,
    /// A lane takes in what it read while its lease had run out, which may be a successor's.
    pub read_without_lease: bool,
    /// What was read counts if the lease stands when it has come, though it had run out meanwhile.
    pub read_over_a_gap: bool,
    /// A lane that was fenced hands its memory on to the next one.
    pub keep_memory: bool,
}

impl Faults {
    /// Every rule holds.
    pub const NONE: Self = Self {
        commit_without_epoch: false,
        commit_without_previous: false,
        owner_change_without_batch_row: false,
        resolve_only_reads: false,
        resolve_of_any_owner: false,
        release_of_any_owner: false,
        ack_before_commit: false,
        guess_instead_of_resolve: false,
        take_by_own_clock: false,
        lease_from_reply: false,
        lease_from_last_attempt: false,
        read_without_lease: false,
        read_over_a_gap: false,
        keep_memory: false,
    };
}
