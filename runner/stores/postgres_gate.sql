-- name: lock  before anything else of a transaction: so nobody comes to a gate, or leaves it, unseen
SELECT pg_advisory_xact_lock(hashtext($1))

-- name: join  behind whoever stands in its line; in an ordered one no rank goes before what came before
INSERT INTO gate (run_id, handler, state, line, is_ordered, slot, bucket, rank)
SELECT u.run_id, u.handler,
    CASE WHEN u.line IS NOT NULL AND (
        row_number() OVER (PARTITION BY u.handler, u.line ORDER BY u.number) > 1
        OR EXISTS (SELECT FROM gate WHERE gate.handler = u.handler AND gate.line = u.line)
    ) THEN 'behind' ELSE 'open' END,
    u.line, u.is_ordered, u.slot, u.bucket,
    CASE WHEN u.is_ordered THEN greatest(
        max(u.rank) OVER (PARTITION BY u.handler, u.line ORDER BY u.number),
        (SELECT max(rank) FROM gate WHERE gate.handler = u.handler AND gate.line = u.line)
    ) ELSE u.rank END
FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[], $7::bigint[])
    WITH ORDINALITY AS u (run_id, handler, line, is_ordered, slot, bucket, rank, number)
ORDER BY u.number

-- name: leave
DELETE FROM gate WHERE run_id = ANY ($1::text[]) RETURNING handler, line, slot

-- name: park
UPDATE gate SET state = 'parked' WHERE run_id = ANY ($1::text[]) AND state = 'running' RETURNING handler, slot

-- name: go_on
UPDATE gate SET state = 'running', begun = true, open_at = NULL WHERE run_id = ANY ($1::text[])

-- name: park_all  of a store that leaves, or of what it does not hold
UPDATE gate SET state = 'parked'
WHERE state = 'running' AND run_id IN (SELECT id FROM runs WHERE owner = $1 AND id <> ALL ($2::text[]))

-- name: open_shut  whoever waits for a slot or a token: there may be more of them
UPDATE gate SET state = 'open', open_at = NULL
WHERE state IN ('full', 'timed') AND ($1::text IS NULL OR handler = $1)

-- name: next_in_line  unless one of the line stands before the gate, or has passed it and is in line still
UPDATE gate SET state = 'open'
WHERE state = 'behind' AND place IN (
    SELECT (
        SELECT place FROM gate AS g
        WHERE g.handler = u.handler AND g.line = u.line AND g.state = 'behind' ORDER BY rank, place LIMIT 1
    )
    FROM unnest($1::text[], $2::text[]) AS u (handler, line)
    WHERE NOT EXISTS (
        SELECT FROM gate AS h WHERE h.handler = u.handler AND h.line = u.line AND h.state <> 'behind'
    )
)

-- name: next_for_slot  as many as there is room for more
UPDATE gate SET state = 'open'
WHERE state = 'full' AND place IN (
    SELECT next.place
    FROM (
        SELECT handler, slot, count(*) AS number FROM unnest($1::text[], $2::text[]) AS f (handler, slot) GROUP BY 1, 2
    ) AS u
    CROSS JOIN LATERAL (
        SELECT place FROM gate AS g
        WHERE g.handler = u.handler AND g.slot = u.slot AND g.state = 'full' ORDER BY rank, place LIMIT u.number
    ) AS next
)

-- name: open_timed
UPDATE gate SET state = 'open', open_at = NULL WHERE handler = $1 AND state = 'timed' AND open_at <= $2

-- name: open_due  runs that have a slot only while they run, and go on: before all that have not begun
UPDATE gate SET state = 'open', rank = -1
WHERE state = 'parked' AND slot IS NOT NULL AND run_id IN (
    SELECT id FROM runs
    WHERE handler = $1 AND due_at IS NOT NULL AND due_at <= $2 AND owner IS NULL AND finished_at IS NULL
)

-- name: candidates
SELECT run_id, line, is_ordered, slot, bucket FROM gate
WHERE handler = $1 AND state = 'open' AND (begun OR NOT $2) ORDER BY rank, place LIMIT $3

-- name: running
SELECT slot, count(*) FROM gate
WHERE handler = $1 AND slot = ANY ($2::text[]) AND state = 'running' GROUP BY slot

-- name: buckets
SELECT key, full_at FROM buckets WHERE name = $1 AND key = ANY ($2::text[])

-- name: keep_buckets
INSERT INTO buckets (name, key, full_at) SELECT $1, * FROM unnest($2::text[], $3::bigint[])
ON CONFLICT (name, key) DO UPDATE SET full_at = excluded.full_at

-- name: let_in  with its token; it stays in line until it is final, if the line is an ordered one
UPDATE gate SET state = 'running', begun = true, bucket = NULL, line = CASE WHEN is_ordered THEN line END
WHERE run_id = ANY ($1::text[])

-- name: full
UPDATE gate SET state = 'full' WHERE run_id = ANY ($1::text[])

-- name: timed
UPDATE gate SET state = 'timed', open_at = u.open_at FROM unnest($1::bigint[], $2::text[]) AS u (open_at, run_id)
WHERE gate.run_id = u.run_id

-- name: next_timed
SELECT min(open_at) FROM gate WHERE handler = $1 AND state = 'timed'

-- name: waiting
SELECT count(*) FROM (SELECT FROM gate WHERE handler = $1 AND NOT begun LIMIT $2) AS counted

-- name: gates
SELECT handler FROM gate WHERE NOT begun UNION SELECT handler FROM gate WHERE slot IS NOT NULL
