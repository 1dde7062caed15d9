-- The first schema. A migration that was released is never edited: its checksum is in every store that it made.

-- "Keyw": tells a Keyward store from any other SQLite file before anything is written to it.
pragma application_id = 1264941431;

-- `document` is the record (src/store/record.rs); the other columns are copies of some of its members, for constraints and
-- compare-and-swap, and are compared with it on every load.
create table tenant (
    id text not null primary key,
    revision integer not null check (revision >= 1),
    issuer text not null unique,
    custom_domain text unique,
    document text not null
) strict;

create table keyring (
    tenant text not null references tenant (id),
    algorithm text not null,
    revision integer not null check (revision >= 1),
    document text not null,
    primary key (tenant, algorithm)
) strict;

-- Events name tenants and keys as text, without references: what was done to a tenant is still told when the tenant is gone.
-- Autoincrement: a sequence number is never used again.
create table audit_event (
    sequence integer primary key autoincrement,
    record text not null
) strict;

-- One row: the token that the store belongs to, and a number that probes raise to show that the store can be written.
create table meta (
    only integer primary key check (only = 1),
    token_serial text not null,
    token_label text not null,
    probes integer not null
) strict;
