//! How a token stands: up, suspect, down or recovering. Pure; the clock is passed in.
//!
//! Calls raise suspicion, and the canary alone decides: a key whose object is missing fails its own calls, and takes no other
//! key's away.

use std::time::{Duration, Instant};

/// How often the canary signs while all is well: an orchestrator asks about as often.
const UP_PAUSE: Duration = Duration::from_secs(2);

/// Shortest time from one canary to the next: the token room initialises a module again once a second, so that asking more
/// often brings nothing.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest time from one canary to the next while the token is down: with the second that an initialisation may have to wait,
/// a token that is back signs within 5 s.
const DOWN_PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long calls raise no new suspicion once the canary has cleared one: a key that fails each call is no reason to ask all
/// the time, and until then the canary is due by itself.
const CLEARED_FOR: Duration = UP_PAUSE;

/// Good canaries in a row that end a recovery: one may be luck.
const RECOVERED_AFTER: u32 = 3;

/// What a token can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// It signs.
    Up,
    /// Something failed, or nobody has asked yet: calls go to the token, and the canary is asked at once.
    Suspect,
    /// It does not sign: only the canary asks it, and all else is answered at once.
    Down,
    /// It signs again: calls go to it, and one canary that fails takes it down.
    Recovering,
}

impl TokenState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Up, Self::Suspect, Self::Down, Self::Recovering];

    /// Its word, on the readiness page and in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Recovering => "recovering",
        }
    }
}

/// What was seen of the token, with the words for the operator.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    /// A call came to nothing, and it may be the token's doing.
    CallFailed(String),
    /// The canary signed, and the signature is right.
    CanarySigned,
    /// The canary did not sign, or wrongly.
    CanaryFailed(String),
    /// The canary was refused because of the PIN: nothing helps before a restart (R14).
    PinRefused(String),
}

/// The state, and what decides about the next.
#[derive(Debug)]
pub(super) struct Standing {
    state: TokenState,
    /// What is wrong, unless it is up.
    problem: String,
    /// Canaries in a row that signed since it was down, or that failed while it was.
    in_a_row: u32,
    cleared: Option<Instant>,
    pin_refused: bool,
}

impl Standing {
    /// Before anything was seen.
    pub(super) fn new() -> Self {
        let problem = "not probed yet".to_owned();
        Self { state: TokenState::Suspect, problem, in_a_row: 0, cleared: None, pin_refused: false }
    }

    pub(super) fn state(&self) -> TokenState {
        self.state
    }

    /// What is wrong; empty while it is up.
    pub(super) fn problem(&self) -> &str {
        &self.problem
    }

    pub(super) fn is_pin_refused(&self) -> bool {
        self.pin_refused
    }

    /// The time from one canary to the next; `None`: no canary, because the PIN was refused.
    pub(super) fn pause(&self) -> Option<Duration> {
        if self.pin_refused {
            return None;
        }
        Some(match self.state {
            TokenState::Up => UP_PAUSE,
            TokenState::Suspect | TokenState::Recovering => PAUSE_MIN,
            TokenState::Down => PAUSE_MIN.saturating_mul(1 << self.in_a_row.min(16)).min(DOWN_PAUSE_MAX),
        })
    }

    /// Takes in what was seen at `now`; whether the state is another one.
    pub(super) fn see(&mut self, seen: Seen, now: Instant) -> bool {
        let before = self.state;
        match (self.state, seen) {
            (_, Seen::PinRefused(problem)) => {
                self.pin_refused = true;
                self.enter(TokenState::Down, problem);
            }
            _ if self.pin_refused => {}
            (TokenState::Up, Seen::CallFailed(_)) if self.is_cleared(now) => {}
            (TokenState::Up, Seen::CallFailed(problem) | Seen::CanaryFailed(problem)) => {
                self.enter(TokenState::Suspect, problem);
            }
            (TokenState::Suspect | TokenState::Recovering, Seen::CanaryFailed(problem)) => {
                self.enter(TokenState::Down, problem);
            }
            (TokenState::Down, Seen::CanaryFailed(problem)) => {
                self.in_a_row += 1;
                self.problem = problem;
            }
            (TokenState::Suspect, Seen::CanarySigned) => self.clear(now),
            (TokenState::Down, Seen::CanarySigned) => {
                self.enter(TokenState::Recovering, "it signs again, and is watched".to_owned());
                self.in_a_row = 1;
            }
            (TokenState::Recovering, Seen::CanarySigned) => {
                self.in_a_row += 1;
                if self.in_a_row >= RECOVERED_AFTER {
                    self.clear(now);
                }
            }
            (TokenState::Up, Seen::CanarySigned)
            | (TokenState::Suspect | TokenState::Down | TokenState::Recovering, Seen::CallFailed(_)) => {}
        }
        self.state != before
    }

    fn clear(&mut self, now: Instant) {
        self.enter(TokenState::Up, String::new());
        self.cleared = Some(now);
    }

    fn enter(&mut self, state: TokenState, problem: String) {
        self.state = state;
        self.problem = problem;
        self.in_a_row = 0;
    }

    fn is_cleared(&self, now: Instant) -> bool {
        self.cleared.is_some_and(|cleared| now.saturating_duration_since(cleared) < CLEARED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::TokenState::{Down, Recovering, Suspect, Up};
    use super::*;

    /// What is seen, in a letter: a call that fails, a canary that signs or fails, a refused PIN, and a pause.
    fn play(letters: &str) -> Vec<TokenState> {
        let (mut standing, mut now) = (Standing::new(), Instant::now());
        let states = letters.chars().map(|letter| {
            let problem = || "a problem".to_owned();
            match letter {
                'c' => drop(standing.see(Seen::CallFailed(problem()), now)),
                's' => drop(standing.see(Seen::CanarySigned, now)),
                'f' => drop(standing.see(Seen::CanaryFailed(problem()), now)),
                'p' => drop(standing.see(Seen::PinRefused(problem()), now)),
                '.' => now += CLEARED_FOR,
                other => panic!("{other} is not a letter of this table"),
            }
            standing.state()
        });
        states.collect()
    }

    #[test]
    fn the_canary_decides_and_calls_only_raise_suspicion() {
        let table: [(&str, &[TokenState]); 9] = [
            ("s", &[Up]),
            ("f", &[Down]),
            ("c", &[Suspect]),
            // A call that fails has the canary asked; each way out of it.
            ("s.cs", &[Up, Up, Suspect, Up]),
            ("s.cf", &[Up, Up, Suspect, Down]),
            // The canary alone, twice.
            ("sff", &[Up, Suspect, Down]),
            // Cleared a moment ago: no new suspicion by the same calls, until some time has passed.
            ("sc.c", &[Up, Up, Up, Suspect]),
            // Recovery: three in a row; calls that fail do not break it off, one canary does.
            ("ffscssf", &[Down, Down, Recovering, Recovering, Recovering, Up, Suspect]),
            ("fsfsss", &[Down, Recovering, Down, Recovering, Recovering, Up]),
        ];
        for (letters, states) in table {
            assert_eq!(play(letters), states, "{letters}");
        }
        assert_eq!(play("spsc."), [Up, Down, Down, Down, Down], "nothing but a restart helps against a refused PIN");
    }

    #[test]
    fn the_canary_comes_sooner_when_it_matters_and_less_often_to_a_token_that_stays_away() {
        let (mut standing, now) = (Standing::new(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            standing.see(Seen::CanaryFailed(String::new()), now);
            pauses.push(standing.pause().expect("it goes on").as_millis());
        }
        assert_eq!(pauses, [250, 500, 1000, 2000, 2000, 2000]);
        standing.see(Seen::CanarySigned, now);
        assert_eq!(standing.pause(), Some(PAUSE_MIN));
        standing.see(Seen::PinRefused(String::new()), now);
        assert_eq!(standing.pause(), None);
    }

    proptest! {
        #[test]
        fn it_is_never_up_but_by_a_canary_and_never_down_but_by_one(letters in "[csf.]{0,60}") {
            let states = play(&letters);
            let mut before = Suspect;
            for (letter, state) in letters.chars().zip(states) {
                let calls_go_through = state != Down;
                match letter {
                    's' => prop_assert!(calls_go_through, "a token that signs is not kept from callers"),
                    'f' => prop_assert!(matches!(state, Down | Suspect)),
                    _ => prop_assert!(state == before || (before == Up && state == Suspect)),
                }
                prop_assert!(state != Up || before == Up || letter == 's');
                before = state;
            }
        }
    }
}
