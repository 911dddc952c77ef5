-- Cells: networks that wait for a crew together with warm instances that are members already.

-- How many members it waits with (0: it is no cell), and who makes them.
ALTER TABLE network ADD COLUMN members integer NOT NULL DEFAULT 0;
ALTER TABLE network ADD COLUMN maker text NOT NULL DEFAULT '';
-- The cell that an instance was made for; '' for those of the pools and of agents.
ALTER TABLE instance ADD COLUMN network text NOT NULL DEFAULT '';

CREATE INDEX instance_cell ON instance (network, created_at, id) WHERE agent IS NULL AND network <> '';

-- As before, with the cell.
DROP VIEW agent_now;
CREATE VIEW agent_now AS
SELECT a.*,
       h.heartbeat_at, coalesce(h.misses, 0) AS misses,
       i.id AS i_id, i.base AS i_base, i.state AS i_state, i.driver AS i_driver, i.control AS i_control,
       i.direct AS i_direct, i.host_pid AS i_host_pid, i.container_id AS i_container_id,
       i.address AS i_address, i.network AS i_network
  FROM agent a
  LEFT JOIN instance i ON i.agent = a.id AND i.generation = a.generation AND i.state <> 'DYING'
  LEFT JOIN agent_health h ON h.agent = a.id AND h.generation = a.generation;
