-- name: join  behind whoever stands in its line; in an ordered one no rank goes before what came before
INSERT INTO gate (run_id, handler, state, line, is_ordered, slot, bucket, rank)
VALUES (
    :run_id, :handler,
    CASE WHEN EXISTS (SELECT 1 FROM gate WHERE handler = :handler AND line = :line) THEN 'behind' ELSE 'open' END,
    :line, :is_ordered, :slot, :bucket,
    CASE WHEN :is_ordered THEN
        max(:rank, coalesce((SELECT max(rank) FROM gate WHERE handler = :handler AND line = :line), :rank))
    ELSE :rank END
)

-- name: leave
DELETE FROM gate WHERE run_id = ? RETURNING handler, line, slot

-- name: park
UPDATE gate SET state = 'parked' WHERE run_id = ? AND state = 'running' RETURNING handler, slot

-- name: go_on
UPDATE gate SET state = 'running', begun = 1, open_at = NULL WHERE run_id = ?

-- name: park_all  of a store that leaves
UPDATE gate SET state = 'parked' WHERE state = 'running' AND run_id IN (SELECT id FROM runs WHERE owner = ?)

-- name: open_shut  whoever waits for a slot or a token: there may be more of them
UPDATE gate SET state = 'open', open_at = NULL WHERE state IN ('full', 'timed') AND (?1 IS NULL OR handler = ?1)

-- name: next_in_line  unless one of the line stands before the gate, or has passed it and is in line still
UPDATE gate SET state = 'open'
WHERE place = (
    SELECT place FROM gate WHERE handler = ?1 AND line = ?2 AND state = 'behind' ORDER BY rank, place LIMIT 1
) AND NOT EXISTS (SELECT 1 FROM gate WHERE handler = ?1 AND line = ?2 AND state <> 'behind')

-- name: next_for_slot
UPDATE gate SET state = 'open'
WHERE place = (
    SELECT place FROM gate WHERE handler = ?1 AND slot = ?2 AND state = 'full' ORDER BY rank, place LIMIT 1
)

-- name: open_timed
UPDATE gate SET state = 'open', open_at = NULL WHERE handler = ? AND state = 'timed' AND open_at <= ?

-- name: open_due  runs that have a slot only while they run, and go on: before all that have not begun (by time, hence
-- the +: of nobody are all that wait)
UPDATE gate SET state = 'open', rank = -1
WHERE state = 'parked' AND run_id IN (
    SELECT id FROM runs
    WHERE handler = ?1 AND due_at IS NOT NULL AND due_at <= ?2 AND +owner IS NULL AND finished_at IS NULL
) AND slot IS NOT NULL

-- name: candidates
SELECT run_id, line, is_ordered, slot, bucket FROM gate
WHERE handler = ? AND state = 'open' AND (begun OR NOT ?) ORDER BY rank, place LIMIT ?

-- name: running
SELECT slot, count(*) FROM gate
WHERE handler = ? AND slot IN (SELECT value FROM json_each(?)) AND state = 'running' GROUP BY slot

-- name: buckets
SELECT key, full_at FROM buckets WHERE name = ? AND key IN (SELECT value FROM json_each(?))

-- name: keep_bucket
INSERT INTO buckets (name, key, full_at) VALUES (?, ?, ?) ON CONFLICT (name, key) DO UPDATE SET full_at = excluded.full_at

-- name: let_in  with its token; it stays in line until it is final, if the line is an ordered one
UPDATE gate SET state = 'running', begun = 1, bucket = NULL, line = CASE WHEN is_ordered THEN line END WHERE run_id = ?

-- name: full
UPDATE gate SET state = 'full' WHERE run_id = ?

-- name: timed
UPDATE gate SET state = 'timed', open_at = ? WHERE run_id = ?

-- name: next_timed
SELECT min(open_at) FROM gate WHERE handler = ? AND state = 'timed'

-- name: waiting
SELECT count(*) FROM (SELECT 1 FROM gate WHERE handler = ? AND NOT begun LIMIT ?)

-- name: gates
SELECT handler FROM gate WHERE NOT begun UNION SELECT handler FROM gate WHERE slot IS NOT NULL
