//! Which numbers of commands are used.

/// Which numbers of commands are used. Calls take ascending numbers; the marker of a local
/// activity comes later than its number was taken, so lower ones may be free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::engine) struct Numbers {
    last_call: u32,
    greatest: u32,
    /// Ranges below `greatest` that are not used, both ends included, ascending.
    free: Vec<(u32, u32)>,
}

impl Numbers {
    /// Uses the number of a call. False if it is not greater than those of the calls before.
    pub(in crate::engine) fn take_call(&mut self, number: u32) -> bool {
        if number <= self.last_call || !self.take(number) {
            return false;
        }
        self.last_call = number;
        true
    }

    /// Uses a number. False if it is used already.
    pub(in crate::engine) fn take(&mut self, number: u32) -> bool {
        if number > self.greatest {
            if number > self.greatest + 1 {
                self.free.push((self.greatest + 1, number - 1));
            }
            self.greatest = number;
            return true;
        }
        let Some(place) = self.free.iter().position(|&(from, to)| (from..=to).contains(&number))
        else {
            return false;
        };
        let (from, to) = self.free.remove(place);
        if number < to {
            self.free.insert(place, (number + 1, to));
        }
        if number > from {
            self.free.insert(place, (from, number - 1));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::super::fixture::*;
    use super::Numbers;

    #[test]
    fn numbers_are_used_once_and_markers_may_come_late() {
        given(history().task([call(3)]))
            .signal("a")
            .task([marker(2, "v"), timer(5, 1), marker(1, "v"), marker(4, "v")])
            .signal("b")
            .task([marker(4, "v")])
            .then_history(
                "started task(0) call3 signal:a task(1) marker2 timer5 marker1 marker4 \
                 task-failed:BadCommands",
            );
        let mut numbers = Numbers::default();
        assert!(numbers.take(u32::MAX) && numbers.take(7) && !numbers.take(7));
        assert!(!numbers.take_call(0) && numbers.take_call(6) && !numbers.take_call(5));
    }

    #[test]
    fn numbers_that_come_in_order_or_late_leave_no_gap_behind() {
        let mut numbers = Numbers::default();
        for number in [1, 2, 3, 7, 5, 4, 6, 8] {
            assert!(numbers.take(number));
        }
        assert_eq!((numbers.greatest, numbers.free), (8, vec![]));
    }
}
