-- What agents said of their tools.

-- name: tools_get
SELECT agent, generation, revision, report FROM agent_tools WHERE agent = ANY(%(agents)s::text[]);

-- name: tools_put
INSERT INTO agent_tools (agent, generation, revision, report, heard_at, heard_by)
SELECT o.agent, o.generation, o.revision, o.report, o.heard_at, o.heard_by
  FROM unnest(%(agents)s::text[], %(generations)s::bigint[], %(revisions)s::bigint[], %(reports)s::bytea[],
              %(heard_at)s::timestamptz[], %(heard_by)s::text[])
    AS o(agent, generation, revision, report, heard_at, heard_by)
ON CONFLICT ON CONSTRAINT agent_tools_pkey DO UPDATE
  SET generation = excluded.generation, revision = excluded.revision, report = excluded.report,
      heard_at = excluded.heard_at, heard_by = excluded.heard_by, row_xid = pg_current_xact_id();

-- name: tools_all
SELECT m.mark::text AS mark, t.*
  FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS mark) AS m
  LEFT JOIN (
    SELECT o.agent, o.generation, o.revision, o.report, o.heard_at, o.heard_by, a.crew,
           c.lease_owner = o.heard_by AND c.lease_until > clock_timestamp() AS heard
      FROM agent a JOIN agent_tools o ON o.agent = a.id JOIN crew c ON c.id = a.crew
     WHERE a.state <> 'STOPPED') AS t ON true;

-- name: tools_since
SELECT m.mark::text AS mark, t.*
  FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS mark) AS m
  LEFT JOIN (
    SELECT o.agent, o.generation, o.revision, o.report, o.heard_at, o.heard_by, a.crew,
           c.lease_owner = o.heard_by AND c.lease_until > clock_timestamp() AS heard, o.row_xid
      FROM agent_tools o JOIN agent a ON a.id = o.agent JOIN crew c ON c.id = a.crew
     WHERE a.state <> 'STOPPED') AS t
    ON t.row_xid >= %(mark)s::text::xid8;

-- name: compact_tools
DELETE FROM agent_tools o USING agent a WHERE a.id = o.agent AND a.state = 'STOPPED' RETURNING 1 AS gone;
