-- name: circuits
SELECT name, open_until, probe_until FROM circuits

-- name: lock
SELECT pg_advisory_xact_lock(hashtext($1))

-- name: add_failure
INSERT INTO circuit_failures (name, at) VALUES ($1, $2)

-- name: forget_failures
DELETE FROM circuit_failures WHERE name = $1 AND at < $2

-- name: failures
SELECT count(*) FROM circuit_failures WHERE name = $1

-- name: open
INSERT INTO circuits (name, open_until) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING name

-- name: open_again  a probe has failed
UPDATE circuits SET open_until = $2, probe_until = NULL WHERE name = $1 AND probe_until IS NOT NULL RETURNING name

-- name: probe
UPDATE circuits SET probe_until = $3
WHERE name = $1 AND open_until <= $2 AND (probe_until IS NULL OR probe_until <= $2)
RETURNING name

-- name: close
DELETE FROM circuits WHERE name = $1 AND probe_until IS NOT NULL RETURNING name

-- name: forget_all_failures
DELETE FROM circuit_failures WHERE name = $1

-- name: pressures
SELECT handler FROM pressures

-- name: press
INSERT INTO pressures (handler) VALUES ($1) ON CONFLICT DO NOTHING RETURNING handler

-- name: ease
DELETE FROM pressures WHERE handler = $1 RETURNING handler
