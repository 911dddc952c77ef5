-- Crews' own networks.

-- name: networks_lock
SELECT pg_advisory_xact_lock(7236111905021965), clock_timestamp() AS now;

-- name: networks_use
-- Of other crews; what waits for a crew keeps nobody from having one.
SELECT count(*) AS networks, coalesce(sum(1 << (32 - prefix)), 0)::bigint AS addresses,
       (SELECT count(*) FROM instance) AS instances
  FROM network WHERE crew IS NOT NULL AND crew <> %(crew)s;

-- name: network_claim
UPDATE network SET state = 'OWNED', crew = %(crew)s
 WHERE id = (SELECT id FROM network WHERE state = 'READY' AND prefix = %(prefix)s
              ORDER BY created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: network_intend
INSERT INTO network (id, prefix, state, crew) VALUES (%(id)s, %(prefix)s, 'STARTING', %(crew)s) RETURNING *;

-- name: networks_expire
UPDATE network SET state = 'DYING'
 WHERE state = 'STARTING' AND crew IS NULL
   AND created_at < clock_timestamp() - make_interval(secs => %(starting_s)s::float8);

-- name: networks_filled
SELECT count(*) AS filled FROM network
 WHERE prefix = %(prefix)s AND crew IS NULL AND state IN ('STARTING', 'READY');

-- name: network_started
UPDATE network SET state = CASE WHEN crew IS NULL THEN 'READY' ELSE 'OWNED' END, subnet = %(subnet)s
 WHERE id = %(id)s AND state <> 'DYING'
RETURNING *;

-- name: network_of_crew
SELECT * FROM network WHERE crew = %(crew)s AND state <> 'DYING';

-- name: networks_list
SELECT * FROM network ORDER BY created_at, id;

-- name: networks_release
UPDATE network SET state = 'DYING' WHERE id = ANY(%(networks)s::text[]);

-- name: network_forget
DELETE FROM network WHERE id = %(id)s;

-- name: instance_address
UPDATE instance SET address = %(address)s WHERE id = %(instance)s AND address <> %(address)s;
