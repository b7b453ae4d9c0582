-- name: begin_run  insert a run; an id that stands already changes nothing
INSERT INTO runs (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, owner)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING

-- name: set_state  what a commit says of its run; one that is put down in good order is forgiven its last suspicion
UPDATE runs SET state = ?1, due_at = ?2, finished_at = ?3, error = ?4, owner = ?5,
    crashes = CASE WHEN ?5 IS NULL THEN min(crashes, ?8) ELSE crashes + ?6 END
WHERE id = ?7

-- name: add_record
INSERT INTO records (run_id, number, body) VALUES (?, ?, ?)

-- name: add_event  its version is the next one of its subject
INSERT INTO events (id, type, source, subject, version, time, correlation_id, causation_id, data)
VALUES (
    ?1, ?2, ?3, ?4,
    CASE WHEN ?4 IS NULL THEN NULL
    ELSE (SELECT coalesce(max(version), 0) + 1 FROM events WHERE subject = ?4) END,
    ?5, ?6, ?7, ?8
)

-- name: add_outgoing
INSERT INTO outbox (exchange, routing_key, properties, body, mandatory) VALUES (?, ?, ?, ?, ?)

-- name: bury  one that came again stands as it came last
INSERT INTO dead_letters (id, reason, handler, received_at, letter, body) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET received_at = excluded.received_at, letter = excluded.letter, body = excluded.body

-- name: due  runs whose time has come
SELECT id FROM runs
WHERE due_at IS NOT NULL AND due_at <= ?1 AND owner IS NULL AND finished_at IS NULL
    AND (?2 IS NULL OR handler IN (SELECT value FROM json_each(?2)))
ORDER BY due_at, id LIMIT ?3

-- name: run_owners
SELECT DISTINCT owner FROM runs WHERE finished_at IS NULL AND owner IS NOT NULL

-- name: runs_of
SELECT id FROM runs
WHERE finished_at IS NULL AND owner = ?1 AND (?2 IS NULL OR handler IN (SELECT value FROM json_each(?2)))
LIMIT ?3

-- name: own_run  a crash is counted before it runs again; a suspect's by who runs it
UPDATE runs SET owner = ?1, due_at = NULL, crashes = crashes + (?2 AND crashes < ?4) WHERE id = ?3

-- name: put_down  the runs of who leaves are due at once; it is no crash
UPDATE runs SET owner = NULL, due_at = started_at WHERE finished_at IS NULL AND owner = ?

-- name: outbox_owners
SELECT DISTINCT owner FROM outbox WHERE owner IS NOT NULL

-- name: free_outbox
UPDATE outbox SET owner = NULL WHERE owner = ?

-- name: take_outbox
UPDATE outbox SET owner = ?1
WHERE position IN (
    SELECT position FROM outbox WHERE owner IS NULL AND (reason IS NULL OR ?2) ORDER BY position LIMIT ?3
)
RETURNING position, exchange, routing_key, properties, body, mandatory, reason

-- name: outbox_confirmed
DELETE FROM outbox WHERE position = ?

-- name: outbox_refused
UPDATE outbox SET owner = NULL, reason = ? WHERE position = ?

-- name: run
SELECT id, flow, handler, plan_hash, state, trigger, trace, data, started_at, finished_at, due_at, error, crashes
FROM runs WHERE id = ?

-- name: run_ids_like
SELECT id FROM runs WHERE id >= ?1 AND id < ?1 || char(0x10FFFF) LIMIT 2

-- name: known
SELECT 1 FROM runs WHERE id = ?

-- name: records
SELECT body FROM records WHERE run_id = ? ORDER BY number

-- name: runs
SELECT id, flow, handler, state, trigger, started_at, finished_at, error FROM runs
WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR handler = ?2)
ORDER BY started_at DESC, id DESC LIMIT ?3

-- name: dead_letters
SELECT letter, body FROM dead_letters
WHERE (?1 IS NULL OR reason = ?1) AND (?2 IS NULL OR handler = ?2)
ORDER BY position DESC LIMIT ?3

-- name: dead_letters_like
SELECT letter, body FROM dead_letters WHERE id = ?1 OR (id > ?1 AND id < ?1 || char(0x10FFFF)) ORDER BY id LIMIT 2

-- name: drop_letter  but not if it has come again since
DELETE FROM dead_letters WHERE id = ? AND received_at = ?

-- name: backlog
SELECT
    (SELECT count(*) FROM runs
     WHERE finished_at IS NULL AND (?1 IS NULL OR handler IN (SELECT value FROM json_each(?1)))),
    (SELECT count(*) FROM outbox WHERE reason IS NULL),
    (SELECT count(*) FROM outbox WHERE reason IS NOT NULL),
    (SELECT count(*) FROM dead_letters)

-- name: keep_plan
INSERT INTO plans (hash, sources) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING

-- name: unfinished_plans
SELECT hash, sources FROM plans WHERE hash IN (SELECT plan_hash FROM runs WHERE finished_at IS NULL)
