-- Crews' own networks, and where instances are on them.

-- No foreign key to crew: what is DYING may outlive it.
CREATE TABLE network (
  id text NOT NULL,
  prefix integer NOT NULL,
  state text NOT NULL,
  crew text,
  subnet text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT network_pkey PRIMARY KEY (id),
  CONSTRAINT network_prefix_range CHECK (prefix BETWEEN 24 AND 28),
  CONSTRAINT network_state_known CHECK (state IN ('STARTING', 'READY', 'OWNED', 'DYING')),
  CONSTRAINT network_ready_is_free CHECK (state <> 'READY' OR crew IS NULL),
  CONSTRAINT network_owned_has_crew CHECK (state <> 'OWNED' OR crew IS NOT NULL)
);

CREATE UNIQUE INDEX network_one_per_crew ON network (crew) WHERE crew IS NOT NULL AND state <> 'DYING';

ALTER TABLE instance ADD COLUMN address text NOT NULL DEFAULT '';

-- As before, with the address.
DROP VIEW agent_now;
CREATE VIEW agent_now AS
SELECT a.*,
       h.heartbeat_at, coalesce(h.misses, 0) AS misses,
       i.id AS i_id, i.base AS i_base, i.state AS i_state, i.driver AS i_driver, i.control AS i_control,
       i.direct AS i_direct, i.host_pid AS i_host_pid, i.container_id AS i_container_id,
       i.address AS i_address
  FROM agent a
  LEFT JOIN instance i ON i.agent = a.id AND i.generation = a.generation AND i.state <> 'DYING'
  LEFT JOIN agent_health h ON h.agent = a.id AND h.generation = a.generation;
