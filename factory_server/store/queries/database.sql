-- Sessions, transactions, migrations.

-- name: begin
BEGIN;

-- name: begin_snapshot
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;

-- name: commit
COMMIT;

-- name: commit_asynchronously
SET LOCAL synchronous_commit = off;

-- name: database_now
SELECT clock_timestamp() AS now;

-- name: migration_lock
SELECT pg_advisory_xact_lock(7236111905021964);

-- name: migration_patience
SELECT set_config('statement_timeout', '120s', true), set_config('lock_timeout', '60s', true);

-- name: migration_table
CREATE TABLE IF NOT EXISTS schema_migration (
  version integer NOT NULL,
  name text NOT NULL,
  checksum text NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT schema_migration_pkey PRIMARY KEY (version)
);

-- name: migrations_applied
SELECT version, checksum FROM schema_migration;

-- name: migration_done
INSERT INTO schema_migration (version, name, checksum) VALUES (%(version)s, %(name)s, %(checksum)s);

-- name: transitions_drop_others
DELETE FROM agent_transition t
 WHERE NOT EXISTS (
   SELECT FROM unnest(%(sources)s::text[], %(events)s::text[], %(targets)s::text[]) AS k(source, event, target)
    WHERE (k.source, k.event, k.target) = (t.source, t.event, t.target));

-- name: transitions_add
INSERT INTO agent_transition (source, event, target)
SELECT * FROM unnest(%(sources)s::text[], %(events)s::text[], %(targets)s::text[])
ON CONFLICT ON CONSTRAINT agent_transition_pkey DO NOTHING;
