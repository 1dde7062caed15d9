use serde::{Deserialize, Serialize};

use super::{Hash, leaf_hash, node_hash};

/// A Merkle tree (RFC 6962 section 2.1) as far as appending to it needs it: the roots of the whole subtrees that the records
/// fall into, one for each bit of their number, the largest first. Some 64 hashes at most, however long the log is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct Frontier {
    size: u64,
    peaks: Vec<Hash>,
}

/// What a frontier is written as, before it was checked.
#[derive(Deserialize)]
struct Parts {
    size: u64,
    peaks: Vec<Hash>,
}

/// More records than any log has; a million a second fill it in 146,000 years. Below it, counting up never overflows.
const SIZE_MAX: u64 = 1 << 62;

/// What cannot be the tree of a log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAFrontier {
    /// Hashes that cannot be the subtrees of this many records.
    #[error("a tree of {size} records has {} subtrees, not {found}", size.count_ones())]
    Subtrees {
        /// How many records it is said to be of.
        size: u64,
        /// How many hashes there are.
        found: usize,
    },
    /// So many records that no log has them.
    #[error("no log has {0} records")]
    Size(u64),
}

impl TryFrom<Parts> for Frontier {
    type Error = NotAFrontier;

    fn try_from(Parts { size, peaks }: Parts) -> Result<Self, NotAFrontier> {
        if size > SIZE_MAX {
            return Err(NotAFrontier::Size(size));
        }
        if peaks.len() == size.count_ones() as usize {
            Ok(Self { size, peaks })
        } else {
            Err(NotAFrontier::Subtrees { size, found: peaks.len() })
        }
    }
}

impl Frontier {
    /// How many records there are.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The tree with one more record; answers with the record's own hash.
    pub fn push(&mut self, record: &[u8]) -> Hash {
        let leaf = leaf_hash(record);
        // As many subtrees of equal size meet as the number of records has ones at its end.
        let mut subtree = leaf;
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("one subtree for each bit of the size");
            subtree = node_hash(&left, &subtree);
        }
        self.peaks.push(subtree);
        self.size += 1;
        leaf
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(smallest) = peaks.next() else { return Hash::of_nothing() };
        peaks.fold(*smallest, |right, left| node_hash(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// MTH(D[n]) word for word from RFC 6962 section 2.1.
    fn merkle_tree_hash(records: &[Vec<u8>]) -> Hash {
        match records {
            [] => Hash::of_nothing(),
            [record] => leaf_hash(record),
            _ => {
                let k = records.len().next_power_of_two() / 2;
                node_hash(&merkle_tree_hash(&records[..k]), &merkle_tree_hash(&records[k..]))
            }
        }
    }

    fn hex(hash: &Hash) -> String {
        hash.octets().iter().map(|octet| format!("{octet:02x}")).collect()
    }

    proptest! {
        #[test]
        fn the_root_is_that_of_the_definition(records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..80)) {
            let mut frontier = Frontier::default();
            for (index, record) in records.iter().enumerate() {
                prop_assert_eq!(frontier.root(), merkle_tree_hash(&records[..index]));
                prop_assert_eq!(frontier.push(record), leaf_hash(record));
            }
            prop_assert_eq!(frontier.root(), merkle_tree_hash(&records));
            prop_assert_eq!(frontier.size(), records.len() as u64);
            let text = serde_json::to_string(&frontier).unwrap();
            prop_assert_eq!(serde_json::from_str::<Frontier>(&text).unwrap(), frontier);
        }
    }

    /// The inputs and roots that implementations of Certificate Transparency test with.
    #[test]
    fn roots_of_known_records() {
        let records: [&[u8]; 8] = [
            b"",
            &[0x00],
            &[0x10],
            &[0x20, 0x21],
            &[0x30, 0x31],
            &[0x40, 0x41, 0x42, 0x43],
            &[0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57],
            &[0x60, 0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x6b, 0x6c, 0x6d, 0x6e, 0x6f],
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let mut frontier = Frontier::default();
        assert_eq!(hex(&frontier.root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        for (record, root) in records.into_iter().zip(roots) {
            frontier.push(record);
            assert_eq!(hex(&frontier.root()), root);
        }
    }

    #[test]
    fn a_frontier_with_a_hash_too_few_is_none() {
        let refused = serde_json::from_str::<Frontier>(r#"{"size":1,"peaks":[]}"#).unwrap_err();
        assert!(refused.to_string().starts_with("a tree of 1 records has 1 subtrees, not 0"), "{refused}");
    }

    #[test]
    fn a_frontier_of_more_records_than_can_be_counted_is_none() {
        let full = Parts { size: u64::MAX, peaks: vec![Hash::of_nothing(); 64] };
        assert_eq!(Frontier::try_from(full), Err(NotAFrontier::Size(u64::MAX)));
    }
}
