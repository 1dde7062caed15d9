//! The token's own speed: one thread, one session, C_Sign again and again; and what a call takes that comes now and then.
//!
//! In a process of its own, on the token that the server signs with: it shares nothing with the server but the core. Its allocator is
//! the system's, as for any program that calls the module; the server brings its own.

use std::num::NonZeroU64;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::UserType;
use rustix::thread::set_current_timer_slack;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::common::tools::SOFTHSM_MODULE;
use crate::table::{AtPace, Latency};

const WARM_UP: Duration = Duration::from_millis(100);
/// Part of that speed at which latency is looked at: busy, but not so busy that the queue alone is seen.
pub(crate) const PACED_LOAD: f64 = 0.7;

/// What a loop showed.
#[derive(Serialize, Deserialize)]
pub(crate) struct Raw {
    pub(crate) per_second: f64,
    /// What the process had of its core for a signature.
    pub(crate) cpu_us: f64,
    pub(crate) latency: Latency,
    /// Of calls that begin at even intervals, counted from the times that they were due: a machine that stands still makes all late
    /// that were due meanwhile. If it was asked for.
    pub(crate) paced: Option<AtPace>,
}

/// Runs the loop in a new process, over the token of the installation in `dir`.
///
/// # Errors
/// The process failed; it said why on standard error.
pub(crate) fn measure(algorithm: &str, dir: &Path, duration: Duration) -> Result<Raw, String> {
    measure_paced(algorithm, dir, duration, Duration::ZERO)
}

/// The same, and then at [`PACED_LOAD`] of its speed for so long.
///
/// # Errors
/// As [`measure`].
pub(crate) fn measure_paced(algorithm: &str, dir: &Path, duration: Duration, paced: Duration) -> Result<Raw, String> {
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(this);
    child.args(["--raw", algorithm]).arg(dir).args([duration, paced].map(|time| time.as_millis().to_string()));
    child.env("SOFTHSM2_CONF", dir.join("module.conf"));
    let output = child.output().map_err(|error| format!("{child:?}: {error}"))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("the raw loop for {algorithm} failed: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs the loop in this process and prints its figures as JSON.
///
/// # Errors
/// Of the module, or there is no key.
pub(crate) fn run(algorithm: &str, dir: &Path, duration: &str, paced: &str) -> Result<(), String> {
    let time = |millis: &str| millis.parse().map(Duration::from_millis).map_err(|error| format!("{millis}: {error}"));
    let (duration, paced) = (time(duration)?, time(paced)?);
    let pin = std::fs::read_to_string(dir.join("pin")).map_err(|error| format!("the PIN: {error}"))?;
    let raw = sign(algorithm, pin.trim(), duration, paced).map_err(|error| error.to_string())?;
    println!("{}", serde_json::to_string(&raw).map_err(|error| error.to_string())?);
    Ok(())
}

fn sign(
    algorithm: &str,
    pin: &str,
    duration: Duration,
    paced_for: Duration,
) -> Result<Raw, Box<dyn std::error::Error>> {
    // What the service hands over: a DigestInfo of SHA-256 is 51 octets.
    let (mechanism, key_type, data, length) = match algorithm {
        "RS256" => (Mechanism::RsaPkcs, KeyType::RSA, vec![7; 51], 256),
        "ES256" => (Mechanism::Ecdsa, KeyType::EC, vec![7; 32], 64),
        "EdDSA" => {
            (Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure)), KeyType::EC_EDWARDS, vec![7; 32], 64)
        }
        other => return Err(format!("no raw loop for {other}").into()),
    };
    let pkcs11 = Pkcs11::new(SOFTHSM_MODULE)?;
    pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
    let slot = *pkcs11.get_slots_with_initialized_token()?.first().ok_or("no token")?;
    let session = pkcs11.open_ro_session(slot)?;
    session.login(UserType::User, Some(&pin.into()))?;
    let wanted = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(key_type), Attribute::Sign(true)];
    let key = *session.find_objects(&wanted)?.first().ok_or("no key of this type")?;

    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        if session.sign(&mechanism, key, &data)?.len() != length {
            return Err("C_Sign did not return a signature".into());
        }
    }
    let mut calls = Vec::new();
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let start = Instant::now();
    let mut last = start;
    while last < start + duration {
        session.sign(&mechanism, key, &data)?;
        let now = Instant::now();
        calls.push(now - last);
        last = now;
    }
    let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime) - cpu)?;
    let count = calls.len() as f64;
    let (per_second, cpu_us) = (count / (last - start).as_secs_f64(), cpu.as_secs_f64() * 1e6 / count);

    // The least that there is: by itself the system wakes a thread up to 50 µs late.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let interval = Duration::from_secs_f64(1.0 / (per_second * PACED_LOAD));
    let (start, mut paced) = (Instant::now(), Vec::new());
    let mut due = start;
    while due < start + paced_for {
        // It rests and does not spin, as a service does without calls: who lets go of a core of a virtual machine may have to wait for
        // it.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        session.sign(&mechanism, key, &data)?;
        paced.push(due.elapsed());
        due += interval;
    }
    let paced = (!paced.is_empty()).then(|| AtPace::of(paced, paced_for));
    Ok(Raw { per_second, cpu_us, latency: Latency::of(calls), paced })
}
