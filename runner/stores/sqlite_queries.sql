-- name: free_key  one that was held until now
UPDATE runs SET key_until = NULL WHERE handler = ? AND key = ? AND key_until <= ?

-- name: free_key_of  one of this run's that another held until now
UPDATE runs SET key_until = NULL
WHERE id <> ?1 AND key_until <= ?2 AND (handler, key) = (SELECT handler, key FROM runs WHERE id = ?1)

-- name: begin_run  insert a run; an id that stands already, or a key that is held, changes nothing
INSERT INTO runs (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, key, key_until, crashes, caller,
    due_at, finished_at, error, asleep, owner)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: set_state  what a commit says of its run; one that is put down in good order is forgiven its last suspicion
UPDATE runs SET state = :state,
    due_at = CASE WHEN :due_at IS NOT NULL AND woken THEN '0001-01-01T00:00:00.000Z' ELSE :due_at END,
    woken = CASE WHEN :due_at IS NULL THEN woken ELSE 0 END,
    asleep = :asleep,
    finished_at = :finished_at, error = :error, owner = :holder,
    crashes = CASE
        WHEN :forgive THEN 0
        WHEN :holder IS NULL THEN CASE WHEN crashes < :limit THEN 0 ELSE :limit END
        ELSE crashes + :suspect
    END,
    key_until = CASE
        WHEN :finished_at IS NULL THEN coalesce(:key_until, key_until)
        WHEN key IS NOT NULL THEN :key_until
    END,
    request = CASE WHEN :finished_at IS NULL THEN request END
WHERE id = :id AND owner = :owner

-- name: add_record
INSERT INTO records (run_id, number, body) VALUES (?, ?, ?)

-- name: add_event  once; its version is the next one of its subject
INSERT INTO events (id, type, source, subject, version, time, correlation_id, causation_id, data, run_id)
VALUES (
    ?1, ?2, ?3, ?4,
    CASE WHEN ?4 IS NULL THEN NULL
    ELSE (SELECT coalesce(max(version), 0) + 1 FROM events WHERE subject = ?4) END,
    ?5, ?6, ?7, ?8, ?9
)
ON CONFLICT (id, source) DO NOTHING

-- name: version
SELECT coalesce(max(version), 0) FROM events WHERE subject = ?

-- name: has_event
SELECT 1 FROM events WHERE id = ? AND source = ?

-- name: events  to be followed by the conditions of what is asked for, and of no more, so that they find their index
SELECT events.position, events.id, events.type, events.source, events.subject, events.version, events.time,
    events.correlation_id, events.causation_id, events.data, events.run_id, runs.handler
FROM events LEFT JOIN runs ON runs.id = events.run_id
WHERE events.position > :after

-- name: positions  to be followed by a type, by the conditions and the order of what is asked for, and by a bracket
SELECT * FROM (SELECT events.position FROM events WHERE events.position > :after AND events.type =

-- name: events_id_begins
AND events.id >= :id_begins AND events.id < :id_begins || char(0x10FFFF)

-- name: events_types
AND events.type IN (SELECT value FROM json_each(:types))

-- name: events_source
AND events.source = :source

-- name: events_subject
AND events.subject = :subject

-- name: events_correlation_id
AND events.correlation_id = :correlation_id

-- name: events_since
AND events.time >= :since

-- name: events_until
AND events.time <= :until

-- name: events_up_to_version
AND events.version <= :up_to_version

-- name: events_first
ORDER BY events.position LIMIT :limit

-- name: events_newest
ORDER BY events.position DESC LIMIT :limit

-- name: head
SELECT coalesce(max(position), 0) FROM events

-- name: old  (id, source) of triggers and letters are in their JSON
SELECT position, id, type, source, subject, version, time, correlation_id, causation_id, data, run_id, NULL
FROM events
WHERE position > ?1 AND position <= ?2 AND time < ?3 AND type NOT IN (SELECT value FROM json_each(?4))
    AND (run_id IS NULL OR run_id NOT IN (SELECT id FROM runs WHERE finished_at IS NULL))
    AND (id, source) NOT IN (
        SELECT json_extract(trigger, '$.id'), json_extract(trigger, '$.source') FROM runs WHERE finished_at IS NULL
    )
    AND (id, source) NOT IN (
        SELECT json_extract(letter, '$.message_id'), json_extract(letter, '$.source') FROM dead_letters
        WHERE json_extract(letter, '$.message_id') IS NOT NULL AND json_extract(letter, '$.source') IS NOT NULL
    )
ORDER BY position

-- name: forget
DELETE FROM events WHERE position IN (SELECT value FROM json_each(?))

-- name: event_types
SELECT DISTINCT type FROM events ORDER BY type

-- name: subjects_near
SELECT subject FROM (SELECT DISTINCT subject FROM events WHERE subject >= ?1 ORDER BY subject LIMIT ?2)
UNION
SELECT subject FROM (SELECT DISTINCT subject FROM events WHERE subject < ?1 ORDER BY subject DESC LIMIT ?2)
UNION
SELECT subject FROM (SELECT subject FROM events WHERE subject IS NOT NULL ORDER BY position DESC LIMIT ?2)

-- name: begun_by
SELECT id, flow, handler, state, trigger, started_at, finished_at, error FROM runs
WHERE substr(trigger, 1, length(?1)) = ?1 ORDER BY started_at, id

-- name: add_command
INSERT INTO commands (id, run_id) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: answer  of several, the first counts
UPDATE commands SET answer = coalesce(answer, ?1) WHERE id = ?2 RETURNING run_id

-- name: wake
UPDATE runs SET due_at = CASE WHEN owner IS NULL THEN '0001-01-01T00:00:00.000Z' END, woken = owner IS NOT NULL
WHERE id = ? AND finished_at IS NULL

-- name: answers
SELECT answer FROM commands WHERE run_id = ? AND answer IS NOT NULL

-- name: add_wait
INSERT INTO waits (token, run_id, cancels) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: forget_waits
DELETE FROM waits WHERE run_id = ?

-- name: arrive
INSERT INTO arrivals (token, source, id, received_at, arrival, data) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: waiting
SELECT waits.run_id, waits.cancels, runs.trigger, runs.started_at
FROM waits JOIN runs ON runs.id = waits.run_id WHERE waits.token = ?

-- name: arrived_cancels  what came between the run's beginning and its first commit
SELECT arrivals.arrival, arrivals.data FROM arrivals JOIN waits ON waits.token = arrivals.token
WHERE waits.run_id = ? AND waits.cancels ORDER BY arrivals.position

-- name: keep_pattern
INSERT INTO wait_patterns (event, fields) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: patterns
SELECT event, fields FROM wait_patterns

-- name: arrivals  since the run began, the earliest first
SELECT arrivals.arrival, arrivals.data FROM arrivals JOIN waits ON waits.token = arrivals.token
WHERE waits.run_id = ?1 AND NOT waits.cancels AND arrivals.received_at >= ?2 ORDER BY arrivals.position

-- name: forget_arrivals
DELETE FROM arrivals WHERE received_at < min(
    ?, (SELECT coalesce(min(started_at), '9999') FROM runs WHERE finished_at IS NULL)
)

-- name: add_caller
INSERT INTO callers (run_id, correlation_id, reply_to, caller) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: served_callers
SELECT callers.run_id, callers.caller FROM callers JOIN runs ON runs.id = callers.run_id
WHERE runs.finished_at IS NOT NULL LIMIT ?

-- name: drop_caller
DELETE FROM callers WHERE run_id = ? AND correlation_id = ? AND reply_to = ?

-- name: add_outgoing
INSERT INTO outbox (exchange, routing_key, properties, body, mandatory, owner) VALUES (?, ?, ?, ?, ?, ?)

-- name: bury  one that came again stands as it came last
INSERT INTO dead_letters (id, reason, handler, received_at, letter, body) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET received_at = excluded.received_at, letter = excluded.letter, body = excluded.body

-- name: due  runs whose time has come, but for those that need a slot and have none (by time, hence the +: of nobody are
-- all that wait)
SELECT id FROM runs
WHERE due_at IS NOT NULL AND due_at <= ?1 AND +owner IS NULL AND finished_at IS NULL
    AND (?2 IS NULL OR handler IN (SELECT value FROM json_each(?2))) AND (crashes >= ?4) = ?5
    AND NOT EXISTS (SELECT 1 FROM gate WHERE run_id = runs.id AND begun AND slot IS NOT NULL AND state <> 'running')
ORDER BY due_at, id LIMIT ?3

-- name: run_owners
SELECT DISTINCT owner FROM runs WHERE finished_at IS NULL AND owner IS NOT NULL

-- name: runs_of
SELECT id FROM runs
WHERE finished_at IS NULL AND owner = ?1 AND (?2 IS NULL OR handler IN (SELECT value FROM json_each(?2)))
    AND (crashes >= ?4 OR NOT ?5)
LIMIT ?3

-- name: seize
UPDATE runs SET owner = ?1, due_at = NULL WHERE id = ?2

-- name: request
UPDATE runs SET request = coalesce(request, ?1), due_at = CASE WHEN owner IS NULL THEN ?2 ELSE due_at END,
    woken = woken OR owner IS NOT NULL
WHERE id = ?3 AND finished_at IS NULL

-- name: lost
SELECT id FROM runs WHERE id IN (SELECT value FROM json_each(?1)) AND owner IS NOT ?2

-- name: any_woken
SELECT 1 FROM runs WHERE id IN (SELECT value FROM json_each(?)) AND woken LIMIT 1

-- name: woken
UPDATE runs SET woken = 0 WHERE id IN (SELECT value FROM json_each(?)) AND woken RETURNING id

-- name: requests
SELECT id, request FROM runs WHERE request IS NOT NULL AND owner = ?

-- name: own_run  a crash is counted before it runs again; a suspect's by who runs it
UPDATE runs SET owner = ?1, due_at = NULL, woken = 0, asleep = 0, crashes = crashes + (?2 AND crashes < ?4) WHERE id = ?3

-- name: own_let_in  a suspect has its slot, and is left to who runs suspects
UPDATE runs SET owner = ?1, due_at = NULL, woken = 0, asleep = 0,
    state = CASE state WHEN 'queued' THEN 'running' ELSE state END
WHERE id = ?2 AND owner IS NULL AND finished_at IS NULL AND crashes < ?3

-- name: put_down  the runs of who leaves are due at once; it is no crash. One that was seized at a gate waits on
UPDATE runs SET owner = NULL, due_at = CASE WHEN state <> 'queued' OR request IS NOT NULL THEN started_at END
WHERE finished_at IS NULL AND owner = ?

-- name: let_go  what somebody who died had seized at a gate waits on
UPDATE runs SET owner = NULL, due_at = CASE WHEN request IS NOT NULL THEN started_at END
WHERE finished_at IS NULL AND owner = ? AND EXISTS (SELECT 1 FROM gate WHERE run_id = runs.id AND NOT begun)

-- name: outbox_owners
SELECT DISTINCT owner FROM outbox WHERE owner IS NOT NULL

-- name: free_outbox
UPDATE outbox SET owner = NULL WHERE owner = ?

-- name: take_outbox  also what is ours: one task of a process sends, so that it has forgotten those
UPDATE outbox SET owner = ?1
WHERE position IN (
    SELECT position FROM outbox WHERE (owner IS NULL OR owner = ?1) AND (reason IS NULL OR ?2)
    ORDER BY position LIMIT ?3
)
RETURNING position, exchange, routing_key, properties, body, mandatory, reason

-- name: outbox_confirmed
DELETE FROM outbox WHERE position = ?

-- name: outbox_refused
UPDATE outbox SET owner = NULL, reason = ? WHERE position = ?

-- name: run
SELECT id, flow, handler, plan_hash, state, trigger, trace, data, started_at, finished_at, due_at, error, crashes,
    key, request, caller
FROM runs WHERE id = ?

-- name: run_ids_like
SELECT id FROM runs WHERE id >= ?1 AND id < ?1 || char(0x10FFFF) LIMIT 2

-- name: known
SELECT 1 FROM runs WHERE id = ?

-- name: holder
SELECT id FROM runs WHERE handler = ? AND key = ? AND key_until > ?

-- name: records
SELECT body FROM records WHERE run_id = ? ORDER BY number

-- name: runs
SELECT id, flow, handler, state, trigger, started_at, finished_at, error FROM runs
WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR handler = ?2)
    AND (?4 IS NULL OR substr(error, 1, length(?4)) = ?4)
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
     WHERE finished_at IS NULL AND (?1 IS NULL OR handler IN (SELECT value FROM json_each(?1))) AND NOT asleep),
    (SELECT count(*) FROM runs
     WHERE finished_at IS NULL AND (?1 IS NULL OR handler IN (SELECT value FROM json_each(?1))) AND crashes >= ?2),
    (SELECT count(*) FROM outbox WHERE reason IS NULL),
    (SELECT count(*) FROM outbox WHERE reason IS NOT NULL),
    (SELECT count(*) FROM dead_letters)

-- name: unfinished
SELECT handler, state, count(*) FROM runs WHERE finished_at IS NULL GROUP BY 1, 2

-- name: recent
SELECT handler, count(*), sum(state IN ('failed', 'compensated', 'compensation_failed')) FROM runs
WHERE started_at >= ? GROUP BY handler

-- name: refused
SELECT position, exchange, routing_key, properties, body, mandatory, reason FROM outbox
WHERE reason IS NOT NULL ORDER BY position LIMIT ?

-- name: keep_plan
INSERT INTO plans (hash, sources) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING

-- name: unfinished_plans
SELECT hash, sources FROM plans WHERE hash IN (SELECT plan_hash FROM runs WHERE finished_at IS NULL)

-- name: keep_declared
INSERT INTO declared_objects (kind, name, body) VALUES (?, ?, ?)
ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body

-- name: declared
SELECT kind, body FROM declared_objects ORDER BY kind, name

-- name: begin_schedule
INSERT INTO schedules (name, slot) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: last_slot
SELECT slot FROM schedules WHERE name = ?

-- name: take_slot
UPDATE schedules SET slot = ?2 WHERE name = ?1 AND slot < ?2

-- name: forget_full_buckets
DELETE FROM buckets
WHERE (name, key) IN (SELECT name, key FROM buckets WHERE full_at <= ?1 ORDER BY full_at LIMIT 10)

-- name: bound_bucket  one that was emptied under a smaller limit
UPDATE buckets SET full_at = ?1 WHERE name = ?3 AND key = ?4 AND full_at > ?2

-- name: take_token  (?3: the time that a token takes, ?4: the time that a full bucket lasts, ?5: now; nanoseconds)
INSERT INTO buckets (name, key, full_at) VALUES (?1, ?2, ?5 + ?3)
ON CONFLICT (name, key) DO UPDATE SET full_at = max(full_at, ?5) + ?3
WHERE max(full_at, ?5) + ?3 <= ?5 + ?4
RETURNING full_at

-- name: full_at
SELECT full_at FROM buckets WHERE name = ?1 AND key = ?2
