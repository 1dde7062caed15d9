use serde::{Deserialize, Serialize};

use super::{Frontier, Hash};
use crate::domain::Event;

/// Where a log ends: its tree, and the hash of its last record. All that is needed to go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    frontier: Frontier,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Hash>,
}

/// One record of a log, as its octets say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its place in the log, from 0.
    pub index: u64,
    /// The hash of the record before; the first has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Hash>,
    /// What it tells.
    #[serde(flatten)]
    pub event: Event,
}

/// A record as it is written: the same members in the same order.
#[derive(Serialize)]
struct Written<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Hash>,
    #[serde(flatten)]
    event: &'a Event,
}

/// Octets that are not the next record of a log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// They are no record at all.
    #[error("it is no record: {0}")]
    Unreadable(String),
    /// They are the record of another place: records were removed, added or swapped.
    #[error("it says that it is record {0}")]
    Index(u64),
    /// They were written after another record: that one was edited since, or is another.
    #[error("it was written after another record than the one before it")]
    Previous,
}

impl Record {
    /// Reads a record from its octets: one JSON object.
    ///
    /// # Errors
    /// [`Broken::Unreadable`].
    pub fn parse(octets: &[u8]) -> Result<Self, Broken> {
        serde_json::from_slice(octets).map_err(|error| Broken::Unreadable(error.to_string()))
    }
}

/// A place of a log as a reader finds it, who shows all that is there and says what of it is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which place, from 0.
    pub index: u64,
    /// What stands there, if it is a record.
    pub record: Option<Record>,
    /// What is wrong with it, as far as is seen without those around it.
    pub problem: Option<String>,
}

impl Entry {
    /// Reads the octets at a place.
    #[must_use]
    pub fn read(index: u64, octets: &[u8]) -> Self {
        match Record::parse(octets) {
            Ok(record) => {
                let problem = (record.index != index).then(|| Broken::Index(record.index).to_string());
                Self { index, record: Some(record), problem }
            }
            Err(broken) => Self { index, record: None, problem: Some(broken.to_string()) },
        }
    }
}

impl Tip {
    /// How many records there are; the index of the next.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The root of the tree over all records.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// The hash of the last record, if there is one.
    #[must_use]
    pub const fn last(&self) -> Option<&Hash> {
        self.last.as_ref()
    }

    /// Makes the octets of the next record, which tells of `event`, and goes on past it.
    ///
    /// # Panics
    /// Never: an event has a form in JSON.
    #[must_use = "the record has to be kept: the tip has gone past it"]
    pub fn append(&mut self, event: &Event) -> Vec<u8> {
        let written = Written { index: self.size(), previous: self.last, event };
        let octets = serde_json::to_vec(&written).expect("texts, numbers and lists have a form in JSON");
        self.last = Some(self.frontier.push(&octets));
        octets
    }

    /// Goes on past a record that was read.
    ///
    /// # Errors
    /// It is not the next record. The tip stays where it is.
    pub fn follow(&mut self, octets: &[u8]) -> Result<Record, Broken> {
        let record = Record::parse(octets)?;
        if record.index != self.size() {
            return Err(Broken::Index(record.index));
        }
        if record.previous != self.last {
            return Err(Broken::Previous);
        }
        self.last = Some(self.frontier.push(octets));
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Caller, Timestamp};

    fn event(detail: &str) -> Event {
        let time = Timestamp::from_second(1_700_000_000).unwrap();
        Event {
            detail: detail.to_owned(),
            ..Event::new(time, "sign", &Caller::anonymous("/keyward.v1.SigningService/Sign"))
        }
    }

    #[test]
    fn a_record_has_its_index_the_hash_before_it_and_the_event() {
        let mut tip = Tip::default();
        let records = [tip.append(&event("a")), tip.append(&event("b"))];
        let text = |octets: &[u8]| String::from_utf8(octets.to_vec()).unwrap();
        let members = r#""time":"2023-11-14T22:13:20Z","action":"sign","principals":["anonymous"],"method":"/keyward.v1.SigningService/Sign","result":"OK""#;
        assert_eq!(text(&records[0]), format!(r#"{{"index":0,{members},"detail":"a"}}"#));
        let previous = super::super::leaf_hash(&records[0]);
        assert_eq!(text(&records[1]), format!(r#"{{"index":1,"previous":"{previous}",{members},"detail":"b"}}"#));

        let mut reader = Tip::default();
        assert_eq!(reader.follow(&records[1]).unwrap_err(), Broken::Index(1));
        assert_eq!(reader.follow(&records[0]).unwrap().event, event("a"));
        assert_eq!(reader.follow(&records[1]).unwrap().previous, Some(previous));
        assert_eq!(reader, tip);
        assert_eq!(serde_json::from_str::<Tip>(&serde_json::to_string(&tip).unwrap()).unwrap(), tip);
    }

    #[test]
    fn a_record_after_an_edited_one_is_not_the_next() {
        let mut tip = Tip::default();
        let records = [tip.append(&event("a")), tip.append(&event("b"))];
        let edited = String::from_utf8(records[0].clone()).unwrap().replace(r#""a""#, r#""c""#);
        let mut reader = Tip::default();
        reader.follow(edited.as_bytes()).unwrap();
        assert_eq!(reader.follow(&records[1]).unwrap_err(), Broken::Previous);
        assert_eq!(reader.size(), 1);
    }
}
