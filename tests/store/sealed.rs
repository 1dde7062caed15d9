//! Sealed records.
