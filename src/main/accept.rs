//! `keyward accept-store`: a store that was put back.

use std::io::Write as _;

use keyward::config::Config;
use keyward::domain::{Event, Timestamp};
use keyward::setup;

use super::{Failure, audit, open_token, operator, runtime};

pub(super) fn run(config: &Config, confirm: bool) -> Result<(), Failure> {
    let runtime = runtime()?;
    let token = open_token(&runtime, config)?;
    let caller = operator("keyward accept-store");
    let event = confirm.then(|| Event::new(Timestamp::now(), "accept_store", &caller));
    let restored = runtime.block_on(setup::restore(config, &token, event));
    token.close();
    let restored = restored.map_err(|error| error.to_string())?;
    let (records, seen) = restored.log;
    say!("administration log: {records} records, and {seen} were seen");
    for (tenants, what) in [
        (&restored.older, "is older than what was seen"),
        (&restored.deleted, "was deleted since"),
        (&restored.missing, "was seen, and is not in the store"),
    ] {
        tenants.iter().for_each(|tenant| say!("{tenant}: {what}"));
    }
    for damage in &restored.damaged {
        say!("{}: stays in quarantine: {}", damage.tenant, damage.problem);
    }
    if confirm {
        audit::retire(config)?;
    } else {
        say!("nothing was changed; with --confirm the store holds as it is");
    }
    Ok(())
}
