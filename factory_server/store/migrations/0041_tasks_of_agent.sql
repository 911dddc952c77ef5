-- A2A lists the newest tasks of an agent.

CREATE INDEX task_of_agent_newest ON task (agent, id DESC);
