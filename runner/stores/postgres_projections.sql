-- name: builds
SELECT id, name, definition, position, state = 'served', claimed_by, claimed_until, faults, last_fault
FROM builds WHERE state <> 'retired' ORDER BY name, id

-- name: lock  until the transaction's end nobody else begins, serves or gives up a read model
SELECT pg_advisory_xact_lock(hashtext($1))

-- name: stands  whether what is served is of this definition, or what is being built
SELECT 1 FROM builds WHERE name = $1 AND definition = $2 AND state = $3

-- name: retire_building
UPDATE builds SET state = 'retired' WHERE name = $1 AND state = 'building'

-- name: begin_build
INSERT INTO builds (name, definition, state) VALUES ($1, $2, 'building')

-- name: keep_only
UPDATE builds SET state = 'retired' WHERE state <> 'retired' AND name <> ALL ($1::text[])

-- name: move  from the position that it was folded on from, or not at all
UPDATE builds SET position = $3, faults = faults + $4, last_fault = coalesce($5, last_fault), claimed_by = $6,
    claimed_until = $7
WHERE id = $1 AND position = $2 AND state <> 'retired'
RETURNING id

-- name: put_entries
INSERT INTO entries (build, key, state, position, changes, latest)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::integer[], $6::text[])
ON CONFLICT (build, key) DO UPDATE SET state = excluded.state, position = excluded.position,
    changes = excluded.changes, latest = excluded.latest

-- name: add_changes
INSERT INTO entry_changes (build, key, position) SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])

-- name: add_snapshots
INSERT INTO entry_snapshots (build, key, state, position, changes, latest)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bigint[], $5::integer[], $6::text[])

-- name: is_at
SELECT name FROM builds WHERE id = $1 AND position = $2 AND state = 'building'

-- name: retire_served
UPDATE builds SET state = 'retired' WHERE name = $1 AND state = 'served'

-- name: serve
UPDATE builds SET state = 'served' WHERE id = $1

-- name: entries  with the position, of one moment
SELECT b.position, e.key, e.state, e.position, e.changes, e.latest
FROM builds b LEFT JOIN entries e ON e.build = b.id AND e.key = ANY ($2::text[])
WHERE b.id = $1 AND b.state <> 'retired'

-- name: is_kept  asked after what is read: from then on it may be swept away
SELECT 1 FROM builds WHERE id = $1 AND state <> 'retired'

-- name: page
SELECT key, state, position, changes, latest FROM entries
WHERE build = $1 AND key > $2 AND state IS NOT NULL ORDER BY key LIMIT $3

-- name: snapshot
SELECT key, state, position, changes, latest FROM entry_snapshots
WHERE build = $1 AND key = $2 AND ($3::bigint IS NULL OR position <= $3) AND ($4::text IS NULL OR latest <= $4)
ORDER BY position DESC LIMIT 1

-- name: history
SELECT events.position, events.id, events.type, events.source, events.subject, events.version, events.time,
    events.correlation_id, events.causation_id, events.data, events.run_id, NULL
FROM entry_changes c JOIN events ON events.position = c.position
WHERE c.build = $1 AND c.key = $2 AND c.position > $5 AND ($3::bigint IS NULL OR c.position <= $3)
    AND ($4::text IS NULL OR events.time <= $4)
ORDER BY events.position

-- name: retired  one that nobody else sweeps: of the same rows, the second would find none, and forget the build
SELECT id FROM builds WHERE state = 'retired' ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED

-- name: sweep_entries
DELETE FROM entries WHERE build = $1 AND key IN (SELECT key FROM entries WHERE build = $1 LIMIT $2)

-- name: sweep_snapshots
DELETE FROM entry_snapshots
WHERE build = $1 AND (key, position) IN (SELECT key, position FROM entry_snapshots WHERE build = $1 LIMIT $2)

-- name: sweep_changes
DELETE FROM entry_changes
WHERE build = $1 AND (key, position) IN (SELECT key, position FROM entry_changes WHERE build = $1 LIMIT $2)

-- name: forget_build
DELETE FROM builds WHERE id = $1
