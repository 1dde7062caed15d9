//! The store: one contract, held by every database it may stand on, and what is particular to each.

// clippy.toml allows this in functions marked as tests; the clauses and samples here are called by those.
#![allow(clippy::unwrap_used)]

mod contract;
mod postgres;
#[allow(dead_code, reason = "a part of it is for tests with replicas")]
#[path = "../common/postgresql.rs"]
mod postgresql;
mod samples;
mod sealed;
#[path = "../common/seals.rs"]
mod seals;
mod sqlite;
mod transfer;
mod values;

/// Mounts the contract for a database: one test for each clause, each with a fresh store of its own.
macro_rules! mount {
    ($database:ident, $harness:ty, $($clause:ident)+) => {
        mod $database {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $clause() {
                    crate::contract::$clause::<$harness>().await;
                }
            )+

            #[test]
            fn values_come_back_as_they_went() {
                crate::values::values_come_back_as_they_went::<$harness>();
            }
        }
    };
}

/// Mounts the whole contract: a database more is one line more below.
macro_rules! mount_contract {
    ($database:ident, $harness:ty) => {
        mount! { $database, $harness,
            what_is_committed_is_loaded
            a_new_store_is_empty_and_knows_its_token
            tenants_come_in_order_of_id_and_keyrings_of_algorithm
            revisions_are_those_of_the_records
            a_record_replaces_its_predecessor_only
            of_many_commits_of_one_revision_exactly_one_wins
            a_change_is_made_as_a_whole_or_not_at_all
            id_issuer_and_custom_domain_are_of_one_tenant_alone
            a_keyring_exists_once_and_only_with_its_tenant
            removal_takes_a_tenant_of_the_expected_revision_with_its_keyrings
            what_a_removal_frees_can_be_taken
            events_are_told_newest_first
            events_stay_when_their_tenant_is_gone
            an_empty_change_is_made
            what_was_committed_is_there_after_reopening
            a_commit_whose_caller_left_is_whole_and_in_nobodys_way
            a_probe_succeeds_and_changes_nothing
        }
    };
}

mount_contract!(contract_over_sqlite, crate::sqlite::Sqlite);
mount_contract!(contract_over_postgres, crate::postgres::Postgres);
