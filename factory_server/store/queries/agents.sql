-- Agents: moves, reads, health.

-- name: agents_insert
INSERT INTO agent (id, uid, crew, name, group_name, replicas, profile, profile_digest, spec, scope, labels,
                   state, generation, reason, created_at, updated_at)
SELECT n.id, n.uid, %(crew)s, n.name, n.group_name, n.replicas, n.profile, n.profile_digest, s.spec, n.scope,
       n.labels, 'PROVISIONING', 1, n.reason, %(now)s, %(now)s
  FROM json_to_recordset(%(agents)s::json)
    AS n(id text, uid text, name text, group_name text, replicas int, profile text, profile_digest text,
         spec_place int, scope text, labels jsonb, reason text)
  JOIN unnest(%(specs)s::bytea[]) WITH ORDINALITY AS s(spec, place) ON s.place = n.spec_place;

-- name: agents_regroup
UPDATE agent a SET replicas = n.replicas, row_xid = pg_current_xact_id()
  FROM unnest(%(agents)s::text[], %(replicas)s::int[]) AS n(id, replicas) WHERE a.id = n.id;

-- name: agents_move
UPDATE agent a
   SET state = t.target, generation = m.generation, warm = m.warm, reason = m.reason, message = m.message,
       updated_at = %(now)s, ready_at = m.ready_at, lease_holder = m.lease_holder,
       lease_until = m.lease_until, not_before = m.not_before, drain_until = m.drain_until,
       replacements = m.replacements, replaced_since = m.replaced_since, frozen_at = m.frozen_at,
       thaw_wanted = a.thaw_wanted AND m.frozen_at IS NOT NULL, row_xid = pg_current_xact_id()
  FROM json_to_recordset(%(moves)s::json)
    AS m(id text, source text, source_generation bigint, event text, target text, generation bigint,
         warm boolean, reason text, message text, ready_at timestamptz, lease_holder text,
         lease_until timestamptz, not_before timestamptz, drain_until timestamptz, replacements integer,
         replaced_since timestamptz, frozen_at timestamptz)
  JOIN agent_transition t ON t.source = m.source AND t.event = m.event AND t.target = m.target
 WHERE a.id = m.id AND a.generation = m.source_generation AND a.state = m.source
RETURNING a.id;

-- name: agent_freeze
UPDATE agent SET frozen_at = %(now)s, thaw_wanted = false, row_xid = pg_current_xact_id()
 WHERE id = %(agent)s AND generation = %(generation)s AND state = 'READY' AND frozen_at IS NULL
RETURNING id;

-- name: agent_want_thaw
UPDATE agent SET thaw_wanted = true, row_xid = pg_current_xact_id()
 WHERE id = %(agent)s AND frozen_at IS NOT NULL
RETURNING id;

-- name: agent_thaw
UPDATE agent SET frozen_at = NULL, thaw_wanted = false, updated_at = %(now)s, row_xid = pg_current_xact_id()
 WHERE id = %(agent)s AND generation = %(generation)s AND state = 'READY' AND frozen_at IS NOT NULL
RETURNING id;

-- name: agent_get
SELECT * FROM agent_now WHERE id = %(agent)s;

-- name: agents_get
SELECT * FROM agent_now WHERE id = ANY(%(agents)s);

-- A page is chosen by id before anything is joined to it.

-- name: agent_list
SELECT a.* FROM (
  SELECT id AS chosen FROM agent
   WHERE id > %(after)s AND state = ANY(%(states)s::text[]) AND labels @> %(labels)s::jsonb
     AND (%(profile)s = '' OR profile = %(profile)s)
   ORDER BY id LIMIT %(size)s) AS page
  JOIN agent_now a ON a.id = chosen
 ORDER BY chosen;

-- name: agent_list_of_crew
SELECT a.* FROM (
  SELECT id AS chosen FROM agent
   WHERE crew = %(crew)s AND id > %(after)s AND state = ANY(%(states)s::text[])
     AND labels @> %(labels)s::jsonb AND (%(profile)s = '' OR profile = %(profile)s)
   ORDER BY id LIMIT %(size)s) AS page
  JOIN agent_now a ON a.id = chosen
 ORDER BY chosen;

-- name: registry_all
SELECT m.mark::text AS mark, a.*
  FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS mark) AS m
  LEFT JOIN agent_now a ON a.state <> 'STOPPED';

-- name: registry_since
SELECT m.mark::text AS mark, a.*
  FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS mark) AS m
  LEFT JOIN agent_now a ON a.row_xid >= %(mark)s::text::xid8;

-- name: agent_lease
UPDATE agent SET lease_holder = %(holder)s, lease_until = %(until)s, row_xid = pg_current_xact_id()
 WHERE id = %(agent)s AND generation = %(generation)s AND state IN ('BUSY', 'DRAINING')
RETURNING id;

-- name: agents_touch
WITH owners AS MATERIALIZED (
  SELECT agent FROM instance WHERE id = ANY(%(instances)s::text[]) AND state <> 'DYING' AND agent IS NOT NULL),
locked AS MATERIALIZED (
  SELECT id FROM agent WHERE id IN (SELECT agent FROM owners) ORDER BY id FOR UPDATE)
UPDATE agent a SET row_xid = pg_current_xact_id() FROM locked l WHERE a.id = l.id
RETURNING a.id;

-- name: health_record
INSERT INTO agent_health (agent, generation, misses, heartbeat_at)
SELECT a.id, a.generation, f.misses, f.seen_at
  FROM unnest(%(agents)s::text[], %(generations)s::bigint[], %(misses)s::integer[],
              %(seen)s::timestamptz[]) AS f(agent, generation, misses, seen_at)
  JOIN agent a ON a.id = f.agent AND a.generation = f.generation
 ORDER BY a.id
ON CONFLICT ON CONSTRAINT agent_health_pkey DO UPDATE
  SET misses = excluded.misses, generation = excluded.generation,
      heartbeat_at = CASE WHEN agent_health.generation = excluded.generation
        THEN greatest(excluded.heartbeat_at, agent_health.heartbeat_at) ELSE excluded.heartbeat_at END
  WHERE agent_health.generation <= excluded.generation
RETURNING agent, generation;
