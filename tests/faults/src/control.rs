//! Which rules hold now. The control file is looked at in each call, which costs a microsecond, so that a change holds from the
//! next call on, in each process.
//!
//! Beside it is a folder of the same name and `.state`: `calls` counts the calls of each function, and each version of the control
//! file has its own counters of calls and faults, so that `once` is once over all processes, and a new version begins anew.

use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use std::{env, io};

use crate::complain;
use crate::counters::Counters;
use crate::functions::Function;
use crate::rules::{RULES_MAX, Rule, When};

/// Names the control file. It is replaced by renaming, never written in place; an empty one has no faults.
pub const CONTROL_VARIABLE: &str = "KEYWARD_FAULTS_CONTROL";

/// One version of the control file: its rules and how often each was met.
pub struct Control {
    rules: Vec<Rule>,
    version: Version,
    written: SystemTime,
    /// For each rule the calls that it is for and those that it made fail.
    counters: Counters,
}

/// How often each function was called, over all processes and all versions of the control file.
pub struct Calls(Counters);

/// Two files that were renamed to the same place differ in one of these.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    inode: u64,
    modified: (i64, i64),
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

impl Control {
    /// The version that is there now.
    ///
    /// # Errors
    ///
    /// It cannot be read, or a line of it says nothing.
    pub fn open(path: &Path) -> Result<Self, String> {
        let told = |problem: String| format!("{}: {problem}", path.display());
        let read = || -> io::Result<(String, Metadata)> {
            let mut file = File::open(path)?;
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            // Of the open file: the one at the path may be newer by now.
            Ok((text, file.metadata()?))
        };
        let (text, metadata) = read().map_err(|error| told(error.to_string()))?;
        let rules = Rule::parse_all(&text).map_err(told)?;
        let version = Version::of(&metadata);
        let (secs, nanos) = version.modified;
        let name = format!("rules-{}-{secs}-{nanos}", version.inode);
        let counters = state(path, &name, 2 * RULES_MAX).map_err(|error| told(error.to_string()))?;
        Ok(Self { rules, version, written: metadata.modified().map_err(|error| told(error.to_string()))?, counters })
    }

    /// How many rules there are.
    #[allow(clippy::len_without_is_empty, reason = "nobody asks whether there are none")]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// How often the rule of this number, from 0, made a call fail.
    pub fn fired(&self, rule: usize) -> u64 {
        self.counters.at(2 * rule + 1).load(Ordering::Acquire)
    }

    /// The rules for a call of this function, with their numbers.
    pub(crate) fn rules_for(&self, function: Function) -> impl Iterator<Item = (usize, &Rule)> {
        self.rules.iter().enumerate().filter(move |(_, rule)| rule.functions.contains(&function))
    }

    /// Counts a call that the rule is for, and says whether it is one that fails.
    pub(crate) fn is_due(&self, number: usize) -> bool {
        let When { lasting, skip, every, share_ppm, times } = self.rules[number].when;
        // A clock that was set back makes the rule last longer.
        let age = SystemTime::now().duration_since(self.written).unwrap_or(Duration::ZERO);
        if lasting.is_some_and(|lasting| age >= lasting) {
            return false;
        }
        let call = 1 + self.counters.at(2 * number).fetch_add(1, Ordering::AcqRel);
        let chosen = call > skip
            && every.is_none_or(|every| (call - skip).is_multiple_of(every))
            && share_ppm.is_none_or(|share| scattered(call) % 1_000_000 < share);
        let claim = |fired: u64| times.is_none_or(|times| fired < times).then_some(fired + 1);
        chosen && self.counters.at(2 * number + 1).fetch_update(Ordering::AcqRel, Ordering::Acquire, claim).is_ok()
    }
}

impl Calls {
    /// Those that belong to a control file.
    ///
    /// # Errors
    ///
    /// The file of counts cannot be made.
    pub fn open(control: &Path) -> io::Result<Self> {
        state(control, "calls", Function::ALL.len()).map(Self)
    }

    /// Calls of this function so far.
    pub fn of(&self, function: Function) -> u64 {
        self.0.at(function as usize).load(Ordering::Acquire)
    }
}

/// The control file of this process.
pub(crate) struct Watch {
    path: PathBuf,
    calls: Calls,
    current: RwLock<Arc<Control>>,
}

impl Watch {
    /// `None` where no control file is named.
    pub(crate) fn of_process() -> Option<&'static Self> {
        static WATCH: OnceLock<Option<Watch>> = OnceLock::new();
        WATCH.get_or_init(|| env::var_os(CONTROL_VARIABLE).map(|path| Self::new(path.into()))).as_ref()
    }

    fn new(path: PathBuf) -> Self {
        let control = read(&path);
        let calls = Calls::open(&path).unwrap_or_else(|error| complain(&format!("{}: {error}", path.display())));
        Self { path, calls, current: RwLock::new(Arc::new(control)) }
    }

    /// Counts a call, and says which rules there are for it.
    pub(crate) fn enter(&self, function: Function) -> Arc<Control> {
        self.calls.0.at(function as usize).fetch_add(1, Ordering::AcqRel);
        self.current()
    }

    /// Whether this still is the version that holds.
    pub(crate) fn is_current(&self, control: &Control) -> bool {
        self.version() == control.version
    }

    fn current(&self) -> Arc<Control> {
        let version = self.version();
        {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if current.version == version {
                return Arc::clone(&current);
            }
        }
        let new = Arc::new(read(&self.path));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        new
    }

    fn version(&self) -> Version {
        match fs::metadata(&self.path) {
            Ok(metadata) => Version::of(&metadata),
            Err(error) => complain(&format!("{CONTROL_VARIABLE} = {}: {error}", self.path.display())),
        }
    }
}

fn read(path: &Path) -> Control {
    Control::open(path).unwrap_or_else(|problem| complain(&format!("{CONTROL_VARIABLE} = {problem}")))
}

fn state(control: &Path, name: &str, count: usize) -> io::Result<Counters> {
    let mut directory = control.as_os_str().to_owned();
    directory.push(".state");
    let directory = PathBuf::from(directory);
    fs::create_dir_all(&directory)?;
    Counters::open(&directory.join(name), count)
}

/// Numbers in a row, far from one another (the finaliser of SplitMix64): which calls a share means is the same in each run.
fn scattered(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
