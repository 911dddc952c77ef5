-- Requests that came before.

-- name: request_claim
INSERT INTO request (actor, method, request_id, request_hash, reference)
VALUES (%(actor)s, %(method)s, %(request_id)s, %(request_hash)s, %(reference)s)
ON CONFLICT ON CONSTRAINT request_pkey DO NOTHING
RETURNING reference;

-- name: request_find
SELECT request_hash, reference FROM request
 WHERE actor = %(actor)s AND method = %(method)s AND request_id = %(request_id)s;

-- name: secret_make
INSERT INTO secret (name, value) VALUES (%(name)s, %(value)s) ON CONFLICT ON CONSTRAINT secret_pkey DO NOTHING;

-- name: secret_get
SELECT value FROM secret WHERE name = %(name)s;

-- name: audit_append
INSERT INTO audit (actor, method, resource, peer, outcome, reason)
SELECT * FROM unnest(%(actors)s::text[], %(methods)s::text[], %(resources)s::text[], %(peers)s::text[],
                     %(outcomes)s::text[], %(reasons)s::text[]);

-- name: audit_list
SELECT * FROM audit WHERE id < %(before)s ORDER BY id DESC LIMIT %(size)s;
