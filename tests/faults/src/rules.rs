//! What a line of the control file says: `FUNCTIONS [after] FAULT [WHEN..]`.

use std::time::Duration;

use cryptoki_sys::CK_RV;

use crate::functions::Function;
use crate::values;

/// Most rules in one file: each has two counters in a file of one page.
pub const RULES_MAX: usize = 256;

/// What is done to which calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// The functions, in no order.
    pub(crate) functions: Vec<Function>,
    /// Whether the real call comes first.
    pub(crate) moment: Moment,
    pub(crate) fault: Fault,
    pub(crate) when: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the real call, or in its place.
    Before,
    /// When the real call has happened.
    After,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The call ends with this return value.
    Answer(CK_RV),
    /// The call waits so long, or until the control file changes; then it goes on.
    Hang(Option<Duration>),
    /// SIGSEGV.
    Crash,
    Delay(Duration),
    /// One bit of the signature is another.
    Flip,
    /// The signature lacks its last octet.
    Shorten,
    /// The signature has no octets.
    Empty,
    /// All sessions of the process are gone.
    LoseSessions,
    /// The real module is logged out.
    LoseLogin,
    /// C_OpenSession answers CKR_SESSION_COUNT where the process has so many sessions open.
    Limit(usize),
    /// C_FindObjects finds nothing.
    ShowNone,
}

/// Which of the calls that the rule is for. All of what is set must hold, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct When {
    /// From the moment that the file was written.
    pub(crate) lasting: Option<Duration>,
    /// After so many calls.
    pub(crate) skip: u64,
    /// Each call whose number it divides.
    pub(crate) every: Option<u64>,
    /// Of a million calls so many, chosen by their number.
    pub(crate) share_ppm: Option<u64>,
    /// Then never again.
    pub(crate) times: Option<u64>,
}

impl Rule {
    /// Reads a whole control file: a rule a line, `#` begins a comment.
    ///
    /// # Errors
    ///
    /// The first line that says nothing, with its number and the word that is wrong.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, String> {
        let mut rules = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            rules.push(Self::parse(line).map_err(|problem| format!("line {}: {problem}", index + 1))?);
        }
        match rules.len() {
            0..=RULES_MAX => Ok(rules),
            more => Err(format!("{more} rules, and {RULES_MAX} are the most")),
        }
    }

    fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace().peekable();
        let functions = functions(words.next().unwrap_or_default())?;
        let moment = match words.next_if_eq(&"after") {
            Some(_) => Moment::After,
            None => Moment::Before,
        };
        let fault = fault(&mut words)?;
        let when = when(&mut words)?;
        let rule = Self { functions, moment, fault, when };
        rule.check()?;
        Ok(rule)
    }

    /// That the fault can happen in these functions.
    fn check(&self) -> Result<(), String> {
        let wanted: (fn(&Function) -> bool, &str) = match self.fault {
            Fault::Flip | Fault::Shorten | Fault::Empty => {
                (|function| matches!(function, Function::C_Sign | Function::C_SignFinal), "C_Sign and C_SignFinal")
            }
            Fault::LoseSessions | Fault::LoseLogin => (|function| function.has_session(), "functions with a session"),
            Fault::Limit(_) => (|function| *function == Function::C_OpenSession, "C_OpenSession"),
            Fault::ShowNone => (|function| *function == Function::C_FindObjects, "C_FindObjects"),
            Fault::Answer(_) | Fault::Hang(_) | Fault::Crash | Fault::Delay(_) => return Ok(()),
        };
        match self.functions.iter().find(|function| !wanted.0(function)) {
            Some(function) => Err(format!("this fault is for {} alone, not for {}", wanted.1, function.name())),
            None => Ok(()),
        }
    }
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn functions(word: &str) -> Result<Vec<Function>, String> {
    if word == "*" {
        return Ok(Function::ALL.to_vec());
    }
    let known = |name| Function::named(name).ok_or_else(|| format!("PKCS#11 v2.40 has no function \"{name}\""));
    word.split(',').map(known).collect()
}

fn fault(words: &mut Words<'_>) -> Result<Fault, String> {
    let word = words.next().ok_or("a fault is missing after the function")?;
    Ok(match word {
        "answer" => {
            let name = next(words, "answer CKR_..")?;
            Fault::Answer(values::parse(name).ok_or_else(|| format!("\"{name}\" is no return value"))?)
        }
        "hang" => Fault::Hang(words.next_if(|word| duration(word).is_ok()).map(duration).transpose()?),
        "crash" => Fault::Crash,
        "delay" => Fault::Delay(duration(next(words, "delay 5ms")?)?),
        "flip" => Fault::Flip,
        "shorten" => Fault::Shorten,
        "empty" => Fault::Empty,
        "lose-sessions" => Fault::LoseSessions,
        "lose-login" => Fault::LoseLogin,
        "limit" => Fault::Limit(number(next(words, "limit 4")?)? as usize),
        "show-none" => Fault::ShowNone,
        _ => return Err(format!("\"{word}\" is no fault")),
    })
}

fn when(words: &mut Words<'_>) -> Result<When, String> {
    let mut when = When::default();
    while let Some(word) = words.next() {
        match word {
            "once" => when.times = Some(1),
            "skip" => when.skip = number(next(words, "skip 10")?)?,
            "every" => when.every = Some(positive(next(words, "every 100")?)?),
            "share" => when.share_ppm = Some(share(next(words, "share 1%")?)?),
            "for" => when.lasting = Some(duration(next(words, "for 1s")?)?),
            count if words.next_if_eq(&"times").is_some() => when.times = Some(number(count)?),
            _ => return Err(format!("\"{word}\" does not say when")),
        }
    }
    Ok(when)
}

fn next<'a>(words: &mut Words<'a>, example: &str) -> Result<&'a str, String> {
    words.next().ok_or_else(|| format!("a word is missing, as in \"{example}\""))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is no number"))
}

fn positive(text: &str) -> Result<u64, String> {
    number(text).and_then(|number| if number > 0 { Ok(number) } else { Err("0 is not allowed here".into()) })
}

/// Parts of a million in a percentage.
fn share(text: &str) -> Result<u64, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    match percent {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a million")]
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10_000.0).round() as u64),
        _ => Err(format!("\"{text}\" is no share from 0% to 100%")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(digits);
    match (count.parse(), unit) {
        (Ok(count), "us") => Ok(Duration::from_micros(count)),
        (Ok(count), "ms") => Ok(Duration::from_millis(count)),
        (Ok(count), "s") => Ok(Duration::from_secs(count)),
        _ => Err(format!("\"{text}\" is no time: a number and us, ms or s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Rule {
        Rule::parse(line).unwrap_or_else(|problem| panic!("{line}: {problem}"))
    }

    #[test]
    fn a_line_says_function_fault_and_when() {
        let text =
            "\n# all of it\nC_Sign,C_SignInit after answer CKR_DEVICE_ERROR skip 3 every 10 2 times for 5s # so\n";
        let rules = Rule::parse_all(text).unwrap();
        let when =
            When { lasting: Some(Duration::from_secs(5)), skip: 3, every: Some(10), share_ppm: None, times: Some(2) };
        let functions = vec![Function::C_Sign, Function::C_SignInit];
        assert_eq!(rules, [Rule { functions, moment: Moment::After, fault: Fault::Answer(0x30), when }]);
        assert_eq!(parsed("C_Sign hang once").fault, Fault::Hang(None));
        assert_eq!(parsed("C_Sign hang 250ms").fault, Fault::Hang(Some(Duration::from_millis(250))));
        assert_eq!(parsed("C_Sign flip share 0.5%").when.share_ppm, Some(5000));
        assert_eq!(parsed("* answer CKR_DEVICE_REMOVED").functions.len(), Function::ALL.len());
    }

    #[test]
    fn what_says_nothing_is_refused_with_line_and_word() {
        for (line, problem) in [
            ("C_Sing crash", "line 1: PKCS#11 v2.40 has no function \"C_Sing\""),
            ("\nC_Sign", "line 2: a fault is missing after the function"),
            ("C_Sign explode", "line 1: \"explode\" is no fault"),
            ("C_Sign answer CKR_NO", "line 1: \"CKR_NO\" is no return value"),
            ("C_Sign answer", "line 1: a word is missing, as in \"answer CKR_..\""),
            ("C_Sign crash sometimes", "line 1: \"sometimes\" does not say when"),
            ("C_Sign delay 5", "line 1: \"5\" is no time: a number and us, ms or s"),
            ("C_Sign crash every 0", "line 1: 0 is not allowed here"),
            ("C_Sign flip share 101%", "line 1: \"101%\" is no share from 0% to 100%"),
            ("C_Login flip", "line 1: this fault is for C_Sign and C_SignFinal alone, not for C_Login"),
            ("* lose-login", "line 1: this fault is for functions with a session alone, not for C_Initialize"),
        ] {
            assert_eq!(Rule::parse_all(line), Err(problem.into()), "{line}");
        }
    }
}
