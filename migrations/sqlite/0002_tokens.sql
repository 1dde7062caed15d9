-- Tokens beside the home token, as the service first saw them: which one has the name (`document`, src/store/record.rs), and the
-- service key's signature of it. `name` is a copy of a member.
create table token (
    name text not null primary key,
    document text not null,
    seal blob not null
) strict;
