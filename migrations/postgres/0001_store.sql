-- The first schema. A migration that was released is never edited: its checksum is in every store that it made.

-- `document` is the record (src/store/record.rs) and `seal` the service key's signature of it; the other columns are copies of
-- some of its members, for constraints and compare-and-swap, and are compared with it on every load. Names are ordered by their
-- octets (collation "C"), as everywhere else.
create table tenant (
    id text collate "C" not null primary key,
    revision bigint not null check (revision >= 1),
    issuer text not null constraint tenant_issuer unique,
    custom_domain text constraint tenant_custom_domain unique,
    document text not null,
    seal bytea not null
);

create table keyring (
    tenant text collate "C" not null references tenant (id),
    algorithm text not null,
    revision bigint not null check (revision >= 1),
    document text not null,
    seal bytea not null,
    primary key (tenant, algorithm)
);

-- The administration log (src/tlog): `record` is the octets that the log's tree is over; `tenant` is a copy of a member of it,
-- to find it by. It names tenants as text, without references: what was done to a tenant is still told when it is gone.
create table audit_event (
    position bigint primary key check (position >= 0),
    tenant text collate "C",
    record text not null
);

create index audit_event_of_tenant on audit_event (tenant, position);

-- One row: the token that the store belongs to, where the administration log ends (a `Tip` of src/tlog, as JSON), a number
-- that probes raise to show that the store can be written, and how many changes of tenants there were. Whoever changes the store
-- locks it first.
create table meta (
    single bigint primary key check (single = 1),
    token_serial text not null,
    token_label text not null,
    log_tip text not null,
    probes bigint not null,
    changes bigint not null default 0,
    change_name bigint not null default 0
);

-- Which tenants the latest changes were of, so that a replica reads those anew and no others. Nothing is believed for it: what
-- is read has its seal. The name of a change is a random number: a standby that took over without the last changes counts on, and
-- its changes have the numbers of others.
create table change (
    number bigint not null,
    name bigint not null,
    tenant text collate "C" not null,
    primary key (number, tenant)
);

-- The replicas: up to which change each has taken up what happened, and until when it may sign from that.
create table replica (
    id text primary key,
    taken_up bigint not null,
    signs_until timestamp with time zone not null
);

-- Tokens beside the home token, as the service first saw them: which one has the name (`document`, src/store/record.rs), and the
-- service key's signature of it. `name` is a copy of a member.
create table token (
    name text collate "C" not null primary key,
    document text not null,
    seal bytea not null
);

-- Tenants that were removed: when each was made, and the service key's signature of both (src/store/record.rs). A replica that
-- misses a tenant's record believes nothing else. One row for an id, of the tenant that had it last.
create table removal (
    tenant text collate "C" not null primary key,
    create_time text not null,
    seal bytea not null
);
