//! Keys by number: each travels to a process whole once, and as a number from then on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::ObjectId;
use crate::token::KeyRef;
use crate::token::pkcs11::KEYS_MAX;

/// Which key. Numbers are given in the order in which keys are told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum KeyName {
    Told(Arc<KeyRef>),
    Number(u32),
}

/// The service's end.
#[derive(Default)]
pub(super) struct Teller {
    numbers: HashMap<ObjectId, (u32, Arc<KeyRef>)>,
    told: u32,
}

/// The process's end.
#[derive(Default)]
pub(super) struct Listener(Vec<Arc<KeyRef>>);

impl Teller {
    /// How to name a key in the next order.
    pub(super) fn name(&mut self, key: &Arc<KeyRef>) -> KeyName {
        if let Some((number, told)) = self.numbers.get(&key.object)
            && is_same(told, key)
        {
            return KeyName::Number(*number);
        }
        // Both ends begin anew at the same key.
        if self.told as usize >= KEYS_MAX {
            *self = Self::default();
        }
        self.numbers.insert(key.object, (self.told, Arc::clone(key)));
        self.told += 1;
        KeyName::Told(Arc::clone(key))
    }
}

impl Listener {
    /// The key that an order names.
    pub(super) fn key(&mut self, name: KeyName) -> io::Result<Arc<KeyRef>> {
        match name {
            KeyName::Told(key) => {
                if self.0.len() >= KEYS_MAX {
                    self.0.clear();
                }
                self.0.push(Arc::clone(&key));
                Ok(key)
            }
            KeyName::Number(number) => {
                let key = usize::try_from(number).ok().and_then(|number| self.0.get(number)).cloned();
                key.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("nobody told key {number}")))
            }
        }
    }
}

/// Whether two records say the same of one object. Most are one and the same.
fn is_same(told: &Arc<KeyRef>, key: &Arc<KeyRef>) -> bool {
    Arc::ptr_eq(told, key) || (told.algorithm == key.algorithm && told.public == key.public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Algorithm;

    fn key(number: usize) -> Arc<KeyRef> {
        let mut object = [0; 16];
        object[..8].copy_from_slice(&number.to_be_bytes());
        Arc::new(KeyRef { object: ObjectId::new(object), algorithm: Algorithm::ES256, public: None, tenant: None })
    }

    #[test]
    fn both_ends_mean_the_same_key_however_many_there_are() {
        let (mut teller, mut listener) = (Teller::default(), Listener::default());
        let keys: Vec<_> = (0..KEYS_MAX + 10).map(key).collect();
        let mut numbers = 0;
        // The second time most have a number, and at the bound both begin anew.
        for key in keys.iter().chain(&keys[KEYS_MAX..]).chain(&keys[..20]).chain(&keys[..20]) {
            let name = teller.name(key);
            numbers += usize::from(matches!(name, KeyName::Number(_)));
            assert!(Arc::ptr_eq(&listener.key(name).unwrap(), key));
        }
        assert_eq!(numbers, 30);
    }

    #[test]
    fn what_is_recorded_anew_of_a_key_is_told_anew() {
        let (mut teller, mut listener) = (Teller::default(), Listener::default());
        let before = key(1);
        let now = Arc::new(KeyRef { object: before.object, algorithm: Algorithm::ES384, public: None, tenant: None });
        for key in [&before, &now, &now, &before] {
            assert!(Arc::ptr_eq(&listener.key(teller.name(key)).unwrap(), key));
        }
        // What says the same is not told again.
        assert!(matches!(teller.name(&key(1)), KeyName::Number(2)));
    }

    #[test]
    fn a_number_that_nobody_told_is_an_error() {
        assert_eq!(Listener::default().key(KeyName::Number(0)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
