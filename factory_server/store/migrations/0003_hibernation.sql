-- States of hibernating agents.

CREATE TABLE agent_state (
  agent text NOT NULL,
  generation bigint NOT NULL,
  data bytea NOT NULL,
  sha256 text NOT NULL,
  stored_at timestamptz NOT NULL,
  CONSTRAINT agent_state_pkey PRIMARY KEY (agent, generation),
  CONSTRAINT agent_state_of_agent FOREIGN KEY (agent) REFERENCES agent (id) ON DELETE CASCADE,
  CONSTRAINT agent_state_size CHECK (octet_length(data) <= 16777216)
);

-- A state is stored and read once: compressing it would cost more than it saves.
ALTER TABLE agent_state ALTER COLUMN data SET STORAGE EXTERNAL;

-- Before an agent hibernates, its signals that wait are asked for.
CREATE INDEX receipt_pending_of_agent ON receipt (agent) WHERE stage = 'PENDING';
