//! Sections: where a cancel request goes.
//!
//! They form a tree by poll nesting. The request goes to the innermost live ones, in creation order,
//! once; a shield holds it back until the outermost one ends.

use std::{
    collections::BTreeSet,
    rc::Rc,
    task::{Context, Waker},
};

use super::core::{Core, State};

#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum CancelRequest {
    #[default]
    None,
    /// Until the outermost shield ends.
    Held,
    Delivered,
}

pub(super) struct Section {
    parent: Option<u64>,
    is_shield: bool,
    is_cancelled: bool,
    waker: Rc<Waker>,
}

/// Where a cancel request went.
pub(super) enum Delivery {
    Held,
    Sections(Vec<Rc<Waker>>),
    Run,
}

/// What a section has to do.
pub(crate) enum SectionTurn {
    /// Poll what is inside, then leave.
    Poll(u64),
    /// A cancel request was for it.
    Cancelled,
    /// The run is not being driven.
    Inert,
}

impl Core {
    /// Makes a section live: a child of the one that is being polled.
    pub(crate) fn enter_section(
        &self,
        id: Option<u64>,
        is_shield: bool,
        cx: &Context<'_>,
    ) -> SectionTurn {
        if !self.is_active() {
            return SectionTurn::Inert;
        }
        let new_id = id.unwrap_or_else(|| self.next_id());
        let waker = Rc::new(cx.waker().clone());
        let mut state = self.state.borrow_mut();
        let State { sections, polled_sections, .. } = &mut *state;
        let parent = polled_sections.last().copied();
        let old = match sections.get_mut(&new_id) {
            Some(section) if section.is_cancelled => {
                let section = sections.remove(&new_id);
                drop(state);
                drop((section, waker));
                return SectionTurn::Cancelled;
            }
            Some(section) => Some(std::mem::replace(&mut section.waker, waker)),
            None => {
                sections.insert(new_id, Section { parent, is_shield, is_cancelled: false, waker });
                None
            }
        };
        polled_sections.push(new_id);
        drop(state);
        drop(old);
        SectionTurn::Poll(new_id)
    }

    /// Ends the poll of a section.
    pub(crate) fn leave_section(&self, id: u64, is_done: bool) {
        let mut state = self.state.borrow_mut();
        let old = is_done.then(|| state.sections.remove(&id));
        state.polled_sections.retain(|polled| *polled != id);
        drop(state);
        drop(old);
    }

    pub(crate) fn drop_section(&self, id: u64) {
        if self.is_active() {
            let old = self.state.borrow_mut().sections.remove(&id);
            drop(old);
        }
    }

    pub(crate) fn is_cancel_requested(&self) -> bool {
        self.state.borrow().cancel != CancelRequest::None
    }

    /// Whether a held request has become due.
    pub(super) fn is_cancel_due(&self) -> bool {
        let state = self.state.borrow();
        state.cancel == CancelRequest::Held
            && !state.sections.values().any(|section| section.is_shield)
    }

    /// Gives the request to the innermost live sections, in creation order.
    pub(super) fn deliver_cancel(&self) -> Delivery {
        let mut state = self.state.borrow_mut();
        if state.sections.values().any(|section| section.is_shield) {
            state.cancel = CancelRequest::Held;
            return Delivery::Held;
        }
        state.cancel = CancelRequest::Delivered;
        if state.sections.is_empty() {
            return Delivery::Run;
        }
        let parents: BTreeSet<u64> =
            state.sections.values().filter_map(|section| section.parent).collect();
        let innermost = state.sections.iter_mut().filter(|(id, _)| !parents.contains(id));
        let wakers = innermost.map(|(_, section)| {
            section.is_cancelled = true;
            Rc::clone(&section.waker)
        });
        Delivery::Sections(wakers.collect())
    }
}
