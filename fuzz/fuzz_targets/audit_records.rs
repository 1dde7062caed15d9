//! Records of an audit log, one a line, and the tip of a log as the store keeps it.
#![no_main]

use keyward::domain::Event;
use keyward::tlog::{Broken, Frontier, Record, Tip, leaf_hash, node_hash};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    let mut reader = Tip::default();
    let mut before = None;
    for octets in log.split(|octet| *octet == b'\n') {
        let (size, root) = (reader.size(), reader.root());
        match reader.follow(octets) {
            Ok(record) => {
                assert_eq!((record.index, record.previous), (size, before));
                assert_eq!(reader.size(), size + 1);
                assert_ne!(reader.root(), root);
                before = Some(leaf_hash(octets));
                assert_can_be_written(&record.event);
            }
            // The reader stays where it is, so that the first bad record can be named.
            Err(Broken::Unreadable(_) | Broken::Index(_) | Broken::Previous) => {
                assert_eq!((reader.size(), reader.root()), (size, root));
                if let Ok(record) = Record::parse(octets) {
                    assert!(record.index != size || record.previous != before, "the next record is refused");
                    assert_can_be_written(&record.event);
                }
            }
        }
        assert_eq!(reader.last(), before.as_ref());
    }

    if let Ok(mut tip) = serde_json::from_slice::<Tip>(log) {
        let (size, root) = (tip.size(), tip.root());
        let written = serde_json::to_vec(&tip).expect("it was JSON");
        assert_eq!(serde_json::from_slice::<Tip>(&written).ok().as_ref(), Some(&tip));
        let _ = tip.follow(b"no record");
        assert_eq!((tip.size(), tip.root()), (size, root));
    }
    if let Ok(mut frontier) = serde_json::from_slice::<Frontier>(log) {
        let (size, root) = (frontier.size(), frontier.root());
        let leaf = frontier.push(b"the next record");
        assert_eq!(frontier.size(), size + 1);
        // A full tree is the left half of the one that the next record begins.
        if size.is_power_of_two() {
            assert_eq!(frontier.root(), node_hash(&root, &leaf));
        }
    }
});

/// What was read of an event is written so that it is read as the same, and stands in a log of its own.
fn assert_can_be_written(event: &Event) {
    let mut writer = Tip::default();
    let octets = writer.append(event);
    assert!(!octets.contains(&b'\n'), "a record is one line");
    let mut reader = Tip::default();
    assert_eq!(reader.follow(&octets).map(|record| record.event).as_ref(), Ok(event));
    assert_eq!(reader, writer);
}
