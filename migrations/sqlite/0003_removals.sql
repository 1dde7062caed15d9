-- Tenants that were removed: when each was made, and the service key's signature of both (src/store/record.rs). A replica that
-- misses a tenant's record believes nothing else. One row for an id, of the tenant that had it last.
create table removal (
    tenant text not null primary key,
    create_time text not null,
    seal blob not null
) strict;
