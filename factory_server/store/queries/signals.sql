-- Broadcasts, receipts, tasks, contexts.

-- name: broadcast_insert
INSERT INTO broadcast (id, crew, signal, payload, actor, targets, created_at, expires_at, done_at)
VALUES (%(id)s, %(crew)s, %(signal)s, %(payload)s, %(actor)s, %(targets)s, %(now)s,
        %(now)s::timestamptz + make_interval(secs => %(ttl_s)s::float8),
        CASE WHEN %(targets)s = 0 THEN %(now)s::timestamptz END)
RETURNING *;

-- name: receipts_insert
INSERT INTO receipt (broadcast, agent, name)
SELECT %(broadcast)s, agent, name FROM unnest(%(agents)s::text[], %(names)s::text[]) AS n(agent, name);

-- name: broadcast_get
SELECT * FROM broadcast WHERE id = %(broadcast)s;

-- name: broadcasts_open
SELECT * FROM broadcast WHERE crew = %(crew)s AND done_at IS NULL ORDER BY id;

-- name: receipts_pending
SELECT * FROM receipt WHERE broadcast = ANY(%(broadcasts)s::text[]) AND stage = 'PENDING'
 ORDER BY broadcast, name;

-- name: receipts_finish
UPDATE receipt r
   SET stage = f.stage, generation = f.generation, latency_s = f.latency_s, error = f.error,
       ordinal = %(finals)s + f.place
  FROM unnest(%(agents)s::text[], %(stages)s::text[], %(generations)s::bigint[], %(latencies)s::float8[],
              %(errors)s::bytea[]) WITH ORDINALITY AS f(agent, stage, generation, latency_s, error, place)
 WHERE r.broadcast = %(broadcast)s AND r.agent = f.agent AND r.stage = 'PENDING'
RETURNING r.*;

-- name: broadcast_count
UPDATE broadcast
   SET finals = %(finals)s, done_at = CASE WHEN targets = %(finals)s THEN %(now)s::timestamptz END
 WHERE id = %(broadcast)s;

-- name: receipts_read
SELECT * FROM receipt WHERE broadcast = %(broadcast)s AND ordinal > %(after)s ORDER BY ordinal;

-- name: task_insert
INSERT INTO task (id, crew, agent, generation, phase, input, actor, created_at, deadline_at)
VALUES (%(id)s, %(crew)s, %(agent)s, %(generation)s, 'ASSIGNED', %(input)s, %(actor)s, %(now)s,
        %(now)s::timestamptz + make_interval(secs => %(timeout_s)s::float8))
RETURNING *;

-- name: task_get
SELECT * FROM task WHERE id = %(task)s;

-- name: task_close
UPDATE task SET phase = %(phase)s, result = %(result)s, ended_at = %(now)s
 WHERE id = %(task)s AND ended_at IS NULL
RETURNING *;

-- name: task_renew
UPDATE agent a
   SET lease_until = clock_timestamp() + make_interval(secs => %(lease_s)s::float8),
       row_xid = pg_current_xact_id()
  FROM task t
 WHERE t.id = %(task)s AND t.ended_at IS NULL AND a.id = t.agent AND a.generation = t.generation
   AND a.lease_holder = %(holder)s AND a.state IN ('BUSY', 'DRAINING')
RETURNING a.id;

-- name: tasks_of_agent
-- What failed tells why in its result; other results are large, and read where they are wanted.
SELECT id, crew, agent, generation, phase, input, actor, created_at, deadline_at, ended_at,
       CASE WHEN %(results)s OR phase = 'FAILED' THEN result ELSE ''::bytea END AS result
  FROM task WHERE agent = %(agent)s ORDER BY id DESC LIMIT %(limit)s;

-- name: tasks_open
SELECT * FROM task WHERE crew = %(crew)s AND ended_at IS NULL ORDER BY id;

-- name: context_upsert
INSERT INTO context AS c (crew, key, value, version, actor)
SELECT %(crew)s, f.key, f.value, f.version, f.actor
  FROM unnest(%(keys)s::text[], %(values)s::text[], %(versions)s::bigint[], %(actors)s::text[])
    AS f(key, value, version, actor)
ON CONFLICT ON CONSTRAINT context_pkey DO UPDATE
  SET value = excluded.value, version = excluded.version, actor = excluded.actor
  WHERE c.version < excluded.version
RETURNING c.key, c.version;

-- name: context_versions
SELECT key, version FROM context WHERE crew = %(crew)s AND key = ANY(%(keys)s::text[]);

-- name: context_cursor_get
SELECT context_cursor FROM crew WHERE id = %(crew)s;

-- name: context_cursor_set
UPDATE crew SET context_cursor = %(cursor)s WHERE id = %(crew)s;

-- name: context_read
SELECT key, value, version, actor FROM context WHERE crew = %(crew)s AND value IS NOT NULL ORDER BY key;
