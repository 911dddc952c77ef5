-- States of hibernating agents.

-- name: state_insert
INSERT INTO agent_state (agent, generation, data, sha256, stored_at)
VALUES (%(agent)s, %(generation)s, %(data)s, %(sha256)s, %(now)s);

-- name: state_checksum
SELECT encode(sha256(data), 'hex') AS sha256 FROM agent_state
 WHERE agent = %(agent)s AND generation = %(generation)s;

-- name: state_get
SELECT generation, data, sha256 FROM agent_state WHERE agent = %(agent)s ORDER BY generation DESC LIMIT 1;

-- name: states_drop
DELETE FROM agent_state s
 USING unnest(%(agents)s::text[], %(generations)s::bigint[]) AS f(agent, generation)
 WHERE s.agent = f.agent AND s.generation <= f.generation;

-- name: signals_waiting
SELECT EXISTS (SELECT FROM receipt WHERE agent = %(agent)s AND stage = 'PENDING') AS waiting;
