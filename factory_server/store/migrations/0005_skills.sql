-- Skill packs, by content.

CREATE TABLE skill_pack (
  id bigint GENERATED ALWAYS AS IDENTITY,
  digest text NOT NULL,
  name text NOT NULL,
  frontmatter jsonb NOT NULL,
  files jsonb NOT NULL,
  content bytea NOT NULL,
  size bigint NOT NULL,
  signature bytea NOT NULL,
  key_id text NOT NULL,
  publisher text NOT NULL,
  created_at timestamptz NOT NULL,
  CONSTRAINT skill_pack_pkey PRIMARY KEY (digest),
  CONSTRAINT skill_pack_size CHECK (octet_length(content) = size AND size <= 16777216)
);

CREATE INDEX skill_pack_by_name ON skill_pack (name, id DESC);
