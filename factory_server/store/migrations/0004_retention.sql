-- Ended crews are looked through for those that ended long ago.

CREATE INDEX crew_ended ON crew (updated_at) WHERE state IN ('DISBANDED', 'FAILED');
