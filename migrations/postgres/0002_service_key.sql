-- CKA_ID of the service key that the store was made with: of two who make a store at the same time, one has the key. Stores from
-- before this have none.
alter table meta add column service_key text;
