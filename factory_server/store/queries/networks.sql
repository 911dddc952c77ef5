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
              ORDER BY members DESC, created_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING *;

-- name: network_intend
INSERT INTO network (id, prefix, state, crew, members, maker)
VALUES (%(id)s, %(prefix)s, 'STARTING', %(crew)s, %(members)s, %(maker)s) RETURNING *;

-- name: networks_expire
UPDATE network SET state = 'DYING'
 WHERE state = 'STARTING' AND crew IS NULL
   AND created_at < clock_timestamp() - make_interval(secs => %(starting_s)s::float8);

-- name: networks_filled
SELECT count(*) AS filled FROM network
 WHERE prefix = %(prefix)s AND crew IS NULL AND state IN ('STARTING', 'READY')
   AND (members > 0) = %(cells)s;

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

-- name: cell_member_intend
-- Only while its cell is being made.
INSERT INTO instance (id, base, state, network)
SELECT %(id)s, %(base)s, 'STARTING', n.id FROM network n
 WHERE n.id = %(network)s AND n.state = 'STARTING' AND n.crew IS NULL
RETURNING *;

-- name: cell_member_started
UPDATE instance
   SET state = 'WARM', driver = %(driver)s, control = %(control)s, host_pid = %(host_pid)s,
       container_id = %(container_id)s, address = %(address)s
 WHERE id = %(id)s AND agent IS NULL AND state = 'STARTING'
RETURNING id;

-- name: cells_broken
-- Whose members are not all alive, or whose maker is gone. A crew that takes one meanwhile keeps it.
UPDATE network n SET state = 'DYING'
 WHERE n.crew IS NULL AND n.members > 0
   AND (n.state = 'STARTING' AND n.maker = %(maker)s
        OR n.state = 'READY' AND n.members > (
          SELECT count(*) FROM instance i
           WHERE i.network = n.id AND i.network <> '' AND i.agent IS NULL AND i.state = 'WARM'));

-- name: cells_orphaned
-- Who waits on a network that is none any more, for a crew or at all.
UPDATE instance i SET state = 'DYING'
 WHERE i.network <> '' AND i.agent IS NULL AND i.state <> 'DYING'
   AND NOT EXISTS (SELECT FROM network n WHERE n.id = i.network AND n.state <> 'DYING')
RETURNING i.id;

-- name: network_forget
DELETE FROM network WHERE id = %(id)s;

-- name: instance_address
UPDATE instance SET address = %(address)s WHERE id = %(instance)s AND address <> %(address)s;
