-- What each agent last said of its tools: a cache, so that any replica and a restarted factory lists at once.

CREATE TABLE agent_tools (
  agent text NOT NULL,
  generation bigint NOT NULL,
  revision bigint NOT NULL,
  report bytea NOT NULL,
  heard_at timestamptz NOT NULL,
  heard_by text NOT NULL,
  row_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  CONSTRAINT agent_tools_pkey PRIMARY KEY (agent),
  CONSTRAINT agent_tools_of_agent FOREIGN KEY (agent) REFERENCES agent (id) ON DELETE CASCADE
);

CREATE INDEX agent_tools_changed ON agent_tools (row_xid);
