//! Lines of the log about what may go on for hours, or happen at each call.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shortest and longest pause before a line is told again. It doubles each time: a token that is away for an hour is worth half a
/// dozen lines, and callers cannot fill a disk with one key that fails.
const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// When each line was told the last time. What is not told is there at DEBUG, and counted in the next line of its kind.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    lines: Mutex<HashMap<&'static str, Told>>,
    quiet_until: Option<Instant>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    pause: Duration,
    untold: u64,
}

impl Repeats {
    /// Those of a process that may be one of many in a row, of which whoever starts them tells: nothing at first.
    pub(super) fn quiet_at_first() -> Self {
        Self { quiet_until: Some(Instant::now() + PAUSE_MIN), ..Self::default() }
    }

    /// `Some`, with how often it was not told in the meantime, if this line is to be told at `now`.
    pub(super) fn due(&self, line: &'static str, now: Instant) -> Option<u64> {
        if self.quiet_until.is_some_and(|until| now < until) {
            return None;
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = lines.get_mut(line) else {
            lines.insert(line, Told { at: now, pause: PAUSE_MIN, untold: 0 });
            return Some(0);
        };
        let quiet = now.saturating_duration_since(told.at);
        if quiet < told.pause {
            told.untold += 1;
            return None;
        }
        // Half of that time without another one: it is a new matter.
        let pause = if quiet < 2 * told.pause { (2 * told.pause).min(PAUSE_MAX) } else { PAUSE_MIN };
        let untold = told.untold;
        *told = Told { at: now, pause, untold: 0 };
        Some(untold)
    }
}

/// Tells a line at WARN, if it is due, and otherwise at DEBUG. What it is told of is the line itself, or what stands before it.
macro_rules! warn_seldom {
    ($repeats:expr, $line:literal $(, $field:ident = $value:expr)*) => {
        $crate::token::repeats::warn_seldom!($repeats, $line => $line $(, $field = $value)*)
    };
    ($repeats:expr, $what:expr => $line:literal $(, $field:ident = $value:expr)*) => {
        match $repeats.due($what, std::time::Instant::now()) {
            Some(0) => tracing::warn!($($field = $value,)* $line),
            Some(untold) => tracing::warn!($($field = $value,)* untold, $line),
            None => tracing::debug!($($field = $value,)* $line),
        }
    };
}

pub(super) use warn_seldom;

#[cfg(test)]
mod tests {
    use super::*;

    /// At which seconds of so many a line is told that is there each second, and what the last of them counts.
    fn told(repeats: &Repeats, seconds: std::ops::Range<u64>, start: Instant) -> (Vec<u64>, u64) {
        let due = |second| repeats.due("a line", start + Duration::from_secs(second)).map(|untold| (second, untold));
        let told: Vec<_> = seconds.filter_map(due).collect();
        let counted = told.last().map_or(0, |(_, untold)| *untold);
        (told.into_iter().map(|(second, _)| second).collect(), counted)
    }

    #[test]
    fn an_hour_of_the_same_is_a_few_lines_and_what_comes_after_a_pause_is_told_at_once() {
        let (repeats, start) = (Repeats::default(), Instant::now());
        let (hour, untold) = told(&repeats, 0..3600, start);
        assert_eq!(hour, [0, 60, 180, 420, 900, 1860]);
        assert_eq!(untold, 959);
        assert_eq!(repeats.due("another line", start), Some(0), "each is told for itself");
        let (day, _) = told(&repeats, 3600..86_400, start);
        assert!(day.len() <= 24, "{day:?}");
        assert_eq!(told(&repeats, 100_000..100_061, start).0, [100_000, 100_060], "it begins anew");
        let quiet = Repeats::quiet_at_first();
        assert_eq!(told(&quiet, 0..62, start).0.len(), 1, "and a process in a row of many says nothing at first");
    }
}
