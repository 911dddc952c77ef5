-- The first schema: crews, agents, instances, pools, events, broadcasts, tasks, profiles, contexts, requests.

-- Filled from core.lifecycle.TABLE each time a store opens; source '' is "does not exist yet".
CREATE TABLE agent_transition (
  source text NOT NULL,
  event text NOT NULL,
  target text NOT NULL,
  CONSTRAINT agent_transition_pkey PRIMARY KEY (source, event)
);

CREATE TABLE crew (
  id text NOT NULL,
  uid text NOT NULL,
  name text NOT NULL,
  manifest bytea NOT NULL,
  labels jsonb NOT NULL,
  min_ready integer NOT NULL,
  state text NOT NULL,
  wish_gone boolean NOT NULL DEFAULT false,
  failed boolean NOT NULL DEFAULT false,
  solo boolean NOT NULL,
  last_sequence bigint NOT NULL DEFAULT 0,
  reason text NOT NULL DEFAULT '',
  message text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  ready_at timestamptz,
  expires_at timestamptz,
  drain_until timestamptz,
  context_cursor text NOT NULL DEFAULT '',
  lease_owner text NOT NULL DEFAULT '',
  lease_until timestamptz,
  CONSTRAINT crew_pkey PRIMARY KEY (id),
  CONSTRAINT crew_state_known CHECK
    (state IN ('ASSEMBLING', 'READY', 'DEGRADED', 'DRAINING', 'DISBANDED', 'FAILED')),
  CONSTRAINT crew_end_is_wished CHECK (wish_gone OR state NOT IN ('DRAINING', 'DISBANDED', 'FAILED'))
) WITH (fillfactor = 70);

CREATE INDEX crew_live ON crew (lease_until NULLS FIRST) WHERE state NOT IN ('DISBANDED', 'FAILED');
CREATE INDEX crew_name ON crew (name, id);
CREATE INDEX crew_labels ON crew USING gin (labels jsonb_path_ops);

CREATE TABLE agent (
  id text NOT NULL,
  uid text NOT NULL,
  crew text NOT NULL,
  name text NOT NULL,
  group_name text NOT NULL,
  replicas integer NOT NULL,
  profile text NOT NULL,
  profile_digest text NOT NULL,
  spec bytea NOT NULL,
  scope text NOT NULL,
  labels jsonb NOT NULL,
  state text NOT NULL,
  generation bigint NOT NULL,
  warm boolean NOT NULL DEFAULT false,
  reason text NOT NULL DEFAULT '',
  message text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  ready_at timestamptz,
  lease_holder text NOT NULL DEFAULT '',
  lease_until timestamptz,
  not_before timestamptz,
  drain_until timestamptz,
  replacements integer NOT NULL DEFAULT 0,
  replaced_since timestamptz,
  row_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  CONSTRAINT agent_pkey PRIMARY KEY (id),
  CONSTRAINT agent_uid UNIQUE (uid),
  CONSTRAINT agent_of_crew FOREIGN KEY (crew) REFERENCES crew (id),
  CONSTRAINT agent_busy_is_held CHECK (state <> 'BUSY' OR lease_holder <> ''),
  CONSTRAINT agent_generation_starts CHECK (generation >= 1)
) WITH (fillfactor = 60);

CREATE UNIQUE INDEX agent_name_taken ON agent (crew, name) WHERE state <> 'STOPPED';
CREATE INDEX agent_crew ON agent (crew, id);
CREATE INDEX agent_changed ON agent (row_xid);
CREATE INDEX agent_live ON agent (id) WHERE state <> 'STOPPED';
CREATE INDEX agent_labels ON agent USING gin (labels jsonb_path_ops);

-- Beside the agent's row, so that heartbeats neither wait for a step nor bloat what a step rewrites.
CREATE TABLE agent_health (
  agent text NOT NULL,
  generation bigint NOT NULL,
  misses integer NOT NULL,
  heartbeat_at timestamptz,
  CONSTRAINT agent_health_pkey PRIMARY KEY (agent)
) WITH (fillfactor = 50);

-- Guards what the programs' compare-and-swap already says: also a hand-written UPDATE cannot leave the table.
CREATE FUNCTION agent_guard() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    IF NEW.generation < OLD.generation THEN
      RAISE EXCEPTION 'agent %: generation cannot fall from % to %', OLD.id, OLD.generation, NEW.generation
        USING ERRCODE = 'check_violation', CONSTRAINT = 'agent_generation_rises';
    END IF;
    IF NEW.state = OLD.state THEN
      RETURN NEW;
    END IF;
  END IF;
  IF NOT EXISTS (
    SELECT FROM agent_transition t
    WHERE t.source = CASE TG_OP WHEN 'UPDATE' THEN OLD.state ELSE '' END AND t.target = NEW.state
  ) THEN
    RAISE EXCEPTION 'agent %: no transition leads to %', NEW.id, NEW.state
      USING ERRCODE = 'check_violation', CONSTRAINT = 'agent_transition_known';
  END IF;
  RETURN NEW;
END $$;

CREATE TRIGGER agent_guard_insert BEFORE INSERT ON agent FOR EACH ROW EXECUTE FUNCTION agent_guard();
CREATE TRIGGER agent_guard_update BEFORE UPDATE OF state, generation ON agent
  FOR EACH ROW EXECUTE FUNCTION agent_guard();

CREATE TABLE instance (
  id text NOT NULL,
  base text NOT NULL,
  state text NOT NULL,
  agent text,
  generation bigint NOT NULL DEFAULT 0,
  driver text NOT NULL DEFAULT '',
  control text NOT NULL DEFAULT '',
  direct text NOT NULL DEFAULT '',
  host_pid bigint NOT NULL DEFAULT 0,
  container_id text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT instance_pkey PRIMARY KEY (id),
  CONSTRAINT instance_of_agent FOREIGN KEY (agent) REFERENCES agent (id),
  CONSTRAINT instance_state_known CHECK (state IN ('STARTING', 'WARM', 'OWNED', 'DYING')),
  CONSTRAINT instance_warm_is_free CHECK (state <> 'WARM' OR agent IS NULL),
  CONSTRAINT instance_owned_has_agent CHECK (state <> 'OWNED' OR agent IS NOT NULL)
) WITH (fillfactor = 60);

CREATE UNIQUE INDEX instance_one_per_generation ON instance (agent, generation)
  WHERE agent IS NOT NULL AND state <> 'DYING';
CREATE INDEX instance_agent ON instance (agent) WHERE agent IS NOT NULL;
CREATE INDEX instance_pool ON instance (base, state, created_at, id) WHERE agent IS NULL;
CREATE INDEX instance_dying ON instance (created_at) WHERE state = 'DYING';

-- An agent with what carries it now; the one place that says which instance that is.
CREATE VIEW agent_now AS
SELECT a.*,
       h.heartbeat_at, coalesce(h.misses, 0) AS misses,
       i.id AS i_id, i.base AS i_base, i.state AS i_state, i.driver AS i_driver, i.control AS i_control,
       i.direct AS i_direct, i.host_pid AS i_host_pid, i.container_id AS i_container_id
  FROM agent a
  LEFT JOIN instance i ON i.agent = a.id AND i.generation = a.generation AND i.state <> 'DYING'
  LEFT JOIN agent_health h ON h.agent = a.id AND h.generation = a.generation;

CREATE TABLE pool (
  base text NOT NULL,
  target integer NOT NULL,
  degraded_reason text NOT NULL DEFAULT '',
  degraded_message text NOT NULL DEFAULT '',
  degraded_since timestamptz,
  CONSTRAINT pool_pkey PRIMARY KEY (base),
  CONSTRAINT pool_target_range CHECK (target >= 0)
);

-- Counters in several slots a base, so that claims in flight do not wait for each other's commit.
CREATE TABLE pool_count (
  base text NOT NULL,
  slot integer NOT NULL,
  claimed bigint NOT NULL,
  missed bigint NOT NULL,
  CONSTRAINT pool_count_pkey PRIMARY KEY (base, slot)
) WITH (fillfactor = 50);

-- No foreign key to crew: the writer holds that row's lock, and this is the hottest insert.
CREATE TABLE event (
  crew text NOT NULL,
  sequence bigint NOT NULL,
  type smallint NOT NULL,
  agent text NOT NULL,
  data bytea NOT NULL,
  time timestamptz NOT NULL,
  xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
  id bigint GENERATED ALWAYS AS IDENTITY,
  CONSTRAINT event_pkey PRIMARY KEY (crew, sequence)
);

CREATE INDEX event_commit_order ON event (xid, id);

CREATE TABLE broadcast (
  id text NOT NULL,
  crew text NOT NULL,
  signal text NOT NULL,
  payload bytea NOT NULL,
  actor text NOT NULL,
  targets integer NOT NULL,
  finals integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  done_at timestamptz,
  CONSTRAINT broadcast_pkey PRIMARY KEY (id),
  CONSTRAINT broadcast_of_crew FOREIGN KEY (crew) REFERENCES crew (id),
  CONSTRAINT broadcast_finals_range CHECK (finals BETWEEN 0 AND targets)
) WITH (fillfactor = 60);

CREATE INDEX broadcast_open ON broadcast (crew, id) WHERE done_at IS NULL;
CREATE INDEX broadcast_done ON broadcast (done_at) WHERE done_at IS NOT NULL;

CREATE TABLE receipt (
  broadcast text NOT NULL,
  agent text NOT NULL,
  name text NOT NULL,
  generation bigint NOT NULL DEFAULT 0,
  stage text NOT NULL DEFAULT 'PENDING',
  ordinal integer NOT NULL DEFAULT 0,
  latency_s double precision NOT NULL DEFAULT 0,
  error bytea NOT NULL DEFAULT '',
  CONSTRAINT receipt_pkey PRIMARY KEY (broadcast, agent),
  CONSTRAINT receipt_of_broadcast FOREIGN KEY (broadcast) REFERENCES broadcast (id) ON DELETE CASCADE,
  CONSTRAINT receipt_stage_known CHECK (stage IN ('PENDING', 'ACKED', 'REJECTED', 'EXPIRED', 'UNREACHABLE')),
  CONSTRAINT receipt_final_is_counted CHECK ((stage = 'PENDING') = (ordinal = 0))
) WITH (fillfactor = 60);

CREATE UNIQUE INDEX receipt_ordinal ON receipt (broadcast, ordinal) WHERE ordinal > 0;

CREATE TABLE task (
  id text NOT NULL,
  crew text NOT NULL,
  agent text NOT NULL,
  generation bigint NOT NULL,
  phase text NOT NULL,
  input bytea NOT NULL,
  result bytea NOT NULL DEFAULT '',
  actor text NOT NULL,
  created_at timestamptz NOT NULL,
  deadline_at timestamptz NOT NULL,
  ended_at timestamptz,
  CONSTRAINT task_pkey PRIMARY KEY (id),
  CONSTRAINT task_of_agent FOREIGN KEY (agent) REFERENCES agent (id),
  CONSTRAINT task_phase_known CHECK (phase IN ('ASSIGNED', 'COMPLETED', 'FAILED')),
  CONSTRAINT task_ends_once CHECK ((phase = 'ASSIGNED') = (ended_at IS NULL))
) WITH (fillfactor = 60);

CREATE INDEX task_open ON task (crew, id) WHERE ended_at IS NULL;
CREATE INDEX task_ended ON task (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE profile (
  name text NOT NULL,
  version bigint NOT NULL,
  digest text NOT NULL,
  spec bytea NOT NULL,
  stage text NOT NULL,
  description text NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  CONSTRAINT profile_pkey PRIMARY KEY (name)
);

CREATE TABLE profile_version (
  name text NOT NULL,
  version bigint NOT NULL,
  digest text NOT NULL,
  spec bytea NOT NULL,
  created_at timestamptz NOT NULL,
  CONSTRAINT profile_version_pkey PRIMARY KEY (name, version),
  CONSTRAINT profile_version_of_profile FOREIGN KEY (name) REFERENCES profile (name)
);

CREATE INDEX profile_version_digest ON profile_version (digest);

-- A removed key stays as a row without a value: its version must not start again.
CREATE TABLE context (
  crew text NOT NULL,
  key text NOT NULL,
  value text,
  version bigint NOT NULL,
  actor text NOT NULL,
  CONSTRAINT context_pkey PRIMARY KEY (crew, key)
);

CREATE TABLE request (
  actor text NOT NULL,
  method text NOT NULL,
  request_id text NOT NULL,
  request_hash bytea NOT NULL,
  reference text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT request_pkey PRIMARY KEY (actor, method, request_id)
);

CREATE INDEX request_age ON request (created_at);

CREATE TABLE secret (
  name text NOT NULL,
  value bytea NOT NULL,
  CONSTRAINT secret_pkey PRIMARY KEY (name)
);

CREATE TABLE audit (
  id bigint GENERATED ALWAYS AS IDENTITY,
  time timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL,
  method text NOT NULL,
  resource text NOT NULL,
  peer text NOT NULL,
  outcome text NOT NULL,
  reason text NOT NULL,
  CONSTRAINT audit_pkey PRIMARY KEY (id)
);
