-- name: circuits
SELECT name, open_until, probe_until FROM circuits

-- name: add_failure
INSERT INTO circuit_failures (name, at) VALUES (?, ?)

-- name: forget_failures
DELETE FROM circuit_failures WHERE name = ? AND at < ?

-- name: failures
SELECT count(*) FROM circuit_failures WHERE name = ?

-- name: open
INSERT INTO circuits (name, open_until) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: open_again  a probe has failed
UPDATE circuits SET open_until = ?2, probe_until = NULL WHERE name = ?1 AND probe_until IS NOT NULL

-- name: probe
UPDATE circuits SET probe_until = ?3 WHERE name = ?1 AND open_until <= ?2 AND (probe_until IS NULL OR probe_until <= ?2)

-- name: close
DELETE FROM circuits WHERE name = ? AND probe_until IS NOT NULL

-- name: forget_all_failures
DELETE FROM circuit_failures WHERE name = ?

-- name: pressures
SELECT handler FROM pressures

-- name: press
INSERT INTO pressures (handler) VALUES (?) ON CONFLICT DO NOTHING

-- name: ease
DELETE FROM pressures WHERE handler = ?
