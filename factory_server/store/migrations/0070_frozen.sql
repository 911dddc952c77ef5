-- Agents that are frozen in place: since when, and whether somebody wants them back.

ALTER TABLE agent ADD COLUMN frozen_at timestamptz,
                  ADD COLUMN thaw_wanted boolean NOT NULL DEFAULT false;

-- As before, with these columns.
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
