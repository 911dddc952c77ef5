-- Instances and the warm pool.

-- name: instances_claim
-- First those that wait on the crew's own network, then those of the pool, which are on none.
WITH wired AS MATERIALIZED (
  SELECT i.id FROM network n
    JOIN instance i ON i.network = n.id AND i.network <> '' AND i.agent IS NULL
   WHERE n.crew = %(crew)s AND n.state <> 'DYING' AND i.base = %(base)s AND i.state = 'WARM'
   ORDER BY i.created_at, i.id LIMIT %(count)s FOR UPDATE OF i SKIP LOCKED),
plain AS MATERIALIZED (
  SELECT id FROM instance WHERE base = %(base)s AND state = 'WARM' AND agent IS NULL AND network = ''
   ORDER BY created_at, id LIMIT %(count)s - (SELECT count(*) FROM wired) FOR UPDATE SKIP LOCKED),
picked AS MATERIALIZED (SELECT id FROM wired UNION ALL SELECT id FROM plain),
numbered AS MATERIALIZED (SELECT id, row_number() OVER (ORDER BY id) AS place FROM picked),
wanted AS MATERIALIZED (
  SELECT * FROM unnest(%(agents)s::text[], %(generations)s::bigint[]) WITH ORDINALITY
    AS w(agent, generation, place))
UPDATE instance i SET state = 'OWNED', agent = w.agent, generation = w.generation
  FROM numbered n JOIN wanted w ON w.place = n.place
 WHERE i.id = n.id
RETURNING i.*;

-- name: instances_intend
INSERT INTO instance (id, base, state, agent, generation)
SELECT id, base, 'STARTING', agent, generation
  FROM unnest(%(ids)s::text[], %(bases)s::text[], %(agents)s::text[], %(generations)s::bigint[])
    AS n(id, base, agent, generation);

-- name: instances_started
UPDATE instance i
   SET state = 'OWNED', driver = f.driver, control = f.control, host_pid = f.host_pid,
       container_id = f.container_id
  FROM json_to_recordset(%(facts)s::json)
    AS f(id text, agent text, generation bigint, driver text, control text, host_pid bigint,
         container_id text)
 WHERE i.id = f.id AND i.agent = f.agent AND i.generation = f.generation AND i.state <> 'DYING'
RETURNING i.id;

-- name: instances_direct
UPDATE instance i SET direct = f.direct
  FROM unnest(%(agents)s::text[], %(generations)s::bigint[], %(directs)s::text[])
    AS f(agent, generation, direct)
 WHERE i.agent = f.agent AND i.generation = f.generation AND i.state <> 'DYING'
RETURNING i.id;

-- name: instances_end
UPDATE instance i SET state = 'DYING'
  FROM unnest(%(agents)s::text[], %(generations)s::bigint[]) AS f(agent, generation)
 WHERE i.agent = f.agent AND i.generation <= f.generation AND i.state <> 'DYING';

-- name: instances_release
UPDATE instance SET state = 'DYING' WHERE id = ANY(%(instances)s::text[]) AND state <> 'DYING';

-- name: instances_dying
SELECT * FROM instance WHERE state = 'DYING' ORDER BY created_at, id LIMIT %(limit)s;

-- name: instances_forget
DELETE FROM instance WHERE id = ANY(%(instances)s::text[]);

-- name: instances_list
SELECT * FROM instance ORDER BY created_at, id;

-- name: pool_count
INSERT INTO pool_count (base, slot, claimed, missed)
SELECT p.base, pg_backend_pid() %% 16, n.claimed, n.missed
  FROM unnest(%(bases)s::text[], %(claimed)s::bigint[], %(missed)s::bigint[]) AS n(base, claimed, missed)
  JOIN pool p ON p.base = n.base
 ORDER BY p.base
ON CONFLICT ON CONSTRAINT pool_count_pkey DO UPDATE
  SET claimed = pool_count.claimed + excluded.claimed, missed = pool_count.missed + excluded.missed;

-- name: pools_get
SELECT p.*,
       (SELECT count(*) FROM instance i WHERE i.base = p.base AND i.state = 'WARM' AND i.agent IS NULL
           AND i.network = '')
         AS ready,
       (SELECT count(*) FROM instance i WHERE i.base = p.base AND i.state = 'STARTING' AND i.agent IS NULL
           AND i.network = '')
         AS starting,
       coalesce((SELECT sum(claimed) FROM pool_count c WHERE c.base = p.base), 0)::bigint AS claimed,
       coalesce((SELECT sum(missed) FROM pool_count c WHERE c.base = p.base), 0)::bigint AS missed
  FROM pool p WHERE %(base)s = '' OR p.base = %(base)s ORDER BY p.base;

-- name: pool_set
INSERT INTO pool (base, target) VALUES (%(base)s, %(target)s)
ON CONFLICT ON CONSTRAINT pool_pkey DO UPDATE SET target = excluded.target;

-- name: pool_trim
WITH surplus AS MATERIALIZED (
  SELECT id FROM instance WHERE base = %(base)s AND state = 'WARM' AND agent IS NULL AND network = ''
   ORDER BY created_at DESC, id
   LIMIT greatest(0, (
     SELECT count(*) FROM instance
      WHERE base = %(base)s AND state IN ('WARM', 'STARTING') AND agent IS NULL AND network = ''
   ) - %(target)s)
   FOR UPDATE SKIP LOCKED)
UPDATE instance i SET state = 'DYING' FROM surplus s WHERE i.id = s.id;

-- name: pool_lock
SELECT target, clock_timestamp() AS now FROM pool WHERE base = %(base)s FOR UPDATE;

-- name: pool_expire
UPDATE instance SET state = 'DYING'
 WHERE base = %(base)s AND state = 'STARTING' AND agent IS NULL
   AND created_at < clock_timestamp() - make_interval(secs => %(starting_s)s::float8);

-- name: pool_filled
SELECT count(*) AS filled FROM instance
 WHERE base = %(base)s AND state IN ('WARM', 'STARTING') AND agent IS NULL AND network = '';

-- name: pool_intend
INSERT INTO instance (id, base, state, maker)
SELECT id, %(base)s, 'STARTING', %(maker)s FROM unnest(%(ids)s::text[]) AS n(id)
RETURNING *;

-- name: pool_abandon
UPDATE instance SET state = 'DYING'
 WHERE state = 'STARTING' AND agent IS NULL AND maker = %(maker)s;

-- name: pool_started
UPDATE instance
   SET state = 'WARM', driver = %(driver)s, control = %(control)s, host_pid = %(host_pid)s,
       container_id = %(container_id)s
 WHERE id = %(id)s AND agent IS NULL AND state IN ('STARTING', 'WARM')
RETURNING id;

-- name: pool_degraded
UPDATE pool
   SET degraded_reason = %(reason)s, degraded_message = %(message)s,
       degraded_since = CASE WHEN %(reason)s = '' THEN NULL
         WHEN degraded_reason = %(reason)s THEN degraded_since ELSE clock_timestamp() END
 WHERE base = %(base)s;
