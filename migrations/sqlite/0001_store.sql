-- The first schema. A migration that was released is never edited: its checksum is in every store that it made.

-- "Keyw": tells a Keyward store from any other SQLite file before anything is written to it.
pragma application_id = 1264941431;

-- `document` is the record (src/store/record.rs) and `seal` the service key's signature of it; the other columns are copies of
-- some of its members, for constraints and compare-and-swap, and are compared with it on every load.
create table tenant (
    id text not null primary key,
    revision integer not null check (revision >= 1),
    issuer text not null unique,
    custom_domain text unique,
    document text not null,
    seal blob not null
) strict;

create table keyring (
    tenant text not null references tenant (id),
    algorithm text not null,
    revision integer not null check (revision >= 1),
    document text not null,
    seal blob not null,
    primary key (tenant, algorithm)
) strict;

-- The administration log (src/tlog): `record` is the octets that the log's tree is over; `tenant` is a copy of a member of it,
-- to find it by. It names tenants as text, without references: what was done to a tenant is still told when it is gone.
create table audit_event (
    position integer primary key check (position >= 0),
    tenant text,
    record text not null
) strict;

create index audit_event_of_tenant on audit_event (tenant, position);

-- One row: the token that the store belongs to, where the administration log ends (a `Tip` of src/tlog, as JSON), and a number
-- that probes raise to show that the store can be written.
create table meta (
    only integer primary key check (only = 1),
    token_serial text not null,
    token_label text not null,
    log_tip text not null,
    probes integer not null
) strict;
