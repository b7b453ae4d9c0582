-- name: take_lease  also the heartbeat
INSERT INTO runners (id, lease_until) VALUES ($1, now() + make_interval(secs => $2))
ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until

-- name: lock_name  until the connection is gone
SELECT pg_try_advisory_lock(hashtextextended($1, 0))

-- name: give_up_lease
DELETE FROM runners WHERE id = $1

-- name: put_down  who takes them next takes them at once, and no crash is counted. One that was seized at a gate waits on
UPDATE runs SET owner = NULL, due_at = CASE WHEN state <> 'queued' OR request IS NOT NULL THEN started_at END
WHERE owner = $1 AND finished_at IS NULL

-- name: let_go  what somebody who died had seized at a gate waits on
UPDATE runs SET owner = NULL, due_at = CASE WHEN request IS NOT NULL THEN started_at END
WHERE finished_at IS NULL AND owner IS NOT NULL AND owner NOT IN (SELECT id FROM runners WHERE lease_until >= now())
    AND EXISTS (SELECT FROM gate WHERE run_id = runs.id AND NOT begun)

-- name: commit
SELECT valid, sent FROM commit_changes(
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24,
    $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43, $44, $45, $46, $47,
    $48, $49, $50, $51, $52, $53, $54, $55, $56, $57, $58, $59, $60, $61, $62
)

-- name: lock_log
SELECT pg_advisory_xact_lock(hashtext($1))

-- name: add_events
SELECT log_events($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)

-- name: version
SELECT coalesce(max(version), 0) FROM events WHERE subject = $1

-- name: known_events
SELECT e.id, e.source
FROM unnest($1::text[], $2::text[]) AS u (id, source) JOIN events e ON e.id = u.id AND e.source = u.source

-- name: events  to be followed by their order
SELECT events.position, events.id, events.type, events.source, events.subject, events.version, events.time,
    events.correlation_id, events.causation_id, events.data, events.run_id, runs.handler
FROM events LEFT JOIN runs ON runs.id = events.run_id
WHERE events.position > $1
    AND ($3::text IS NULL OR (events.id >= $3 AND events.id < $3 || chr(1114111)))
    AND ($4::text[] IS NULL OR events.type = ANY ($4))
    AND ($5::text IS NULL OR events.source = $5)
    AND ($6::text IS NULL OR events.subject = $6)
    AND ($7::text IS NULL OR events.correlation_id = $7)
    AND ($8::text IS NULL OR events.time >= $8)
    AND ($9::text IS NULL OR events.time <= $9)
    AND ($10::integer IS NULL OR events.version <= $10)

-- name: events_first
ORDER BY events.position LIMIT $2

-- name: events_newest
ORDER BY events.position DESC LIMIT $2

-- name: events_of_types_first  of each type, by its index, the first in order, and of these the first
SELECT events.position, events.id, events.type, events.source, events.subject, events.version, events.time,
    events.correlation_id, events.causation_id, events.data, events.run_id, runs.handler
FROM unnest($3::text[]) AS wanted (type)
CROSS JOIN LATERAL (
    SELECT e.position FROM events e
    WHERE e.type = wanted.type AND e.position > $1
        AND ($4::text IS NULL OR e.source = $4)
        AND ($5::text IS NULL OR e.time >= $5)
        AND ($6::text IS NULL OR e.time <= $6)
        AND ($7::integer IS NULL OR e.version <= $7)
    ORDER BY e.position LIMIT $2
) AS found
JOIN events ON events.position = found.position
LEFT JOIN runs ON runs.id = events.run_id
ORDER BY events.position LIMIT $2

-- name: events_of_types_newest
SELECT events.position, events.id, events.type, events.source, events.subject, events.version, events.time,
    events.correlation_id, events.causation_id, events.data, events.run_id, runs.handler
FROM unnest($3::text[]) AS wanted (type)
CROSS JOIN LATERAL (
    SELECT e.position FROM events e
    WHERE e.type = wanted.type AND e.position > $1
        AND ($4::text IS NULL OR e.source = $4)
        AND ($5::text IS NULL OR e.time >= $5)
        AND ($6::text IS NULL OR e.time <= $6)
        AND ($7::integer IS NULL OR e.version <= $7)
    ORDER BY e.position DESC LIMIT $2
) AS found
JOIN events ON events.position = found.position
LEFT JOIN runs ON runs.id = events.run_id
ORDER BY events.position DESC LIMIT $2

-- name: head
SELECT coalesce(max(position), 0) FROM events

-- name: old  (id, source) of triggers and letters are in their JSON
SELECT position, id, type, source, subject, version, time, correlation_id, causation_id, data, run_id, NULL
FROM events
WHERE position > $1 AND position <= $2 AND time < $3 AND type <> ALL ($4::text[])
    AND NOT EXISTS (SELECT FROM runs WHERE runs.id = events.run_id AND runs.finished_at IS NULL)
    AND (id, source) NOT IN (
        SELECT trigger::json ->> 'id', trigger::json ->> 'source' FROM runs WHERE finished_at IS NULL
    )
    AND NOT EXISTS (
        SELECT FROM dead_letters
        WHERE letter::json ->> 'message_id' = events.id AND letter::json ->> 'source' = events.source
    )
ORDER BY position

-- name: forget
DELETE FROM events WHERE position = ANY ($1::bigint[])

-- name: event_types
SELECT DISTINCT type FROM events ORDER BY type

-- name: subjects_near
SELECT subject FROM (SELECT DISTINCT subject FROM events WHERE subject >= $1 ORDER BY subject LIMIT $2) AS next
UNION
SELECT subject FROM (SELECT DISTINCT subject FROM events WHERE subject < $1 ORDER BY subject DESC LIMIT $2) AS last
UNION
SELECT subject FROM (SELECT subject FROM events WHERE subject IS NOT NULL ORDER BY position DESC LIMIT $2) AS newest

-- name: begun_by
SELECT id, flow, handler, state, trigger, started_at, finished_at, error FROM runs
WHERE starts_with(trigger, $1) ORDER BY started_at, id

-- name: answer  of several, the first counts
UPDATE commands SET answer = coalesce(answer, $1) WHERE id = $2 RETURNING run_id

-- name: wake
UPDATE runs SET due_at = CASE WHEN owner IS NULL THEN '0001-01-01T00:00:00.000Z' END, woken = owner IS NOT NULL
WHERE id = $1 AND finished_at IS NULL

-- name: answers
SELECT run_id, answer FROM commands WHERE run_id = ANY ($1::text[]) AND answer IS NOT NULL

-- name: arrive  in a transaction of its own: who begins to wait meanwhile sees it, or is seen by `waiting` below
INSERT INTO arrivals (token, source, id, received_at, arrival, data)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[])
ON CONFLICT DO NOTHING

-- name: waiting
SELECT waits.token, waits.run_id, waits.cancels, runs.trigger, runs.started_at
FROM waits JOIN runs ON runs.id = waits.run_id WHERE waits.token = ANY ($1::text[])

-- name: arrived_cancels  what came between the runs' beginnings and their first commits
SELECT waits.run_id, arrivals.arrival, arrivals.data
FROM waits JOIN arrivals ON arrivals.token = waits.token
WHERE waits.run_id = ANY ($1::text[]) AND waits.cancels ORDER BY arrivals.position

-- name: keep_patterns
INSERT INTO wait_patterns (event, fields) SELECT * FROM unnest($1::text[], $2::text[]) ON CONFLICT DO NOTHING

-- name: patterns
SELECT event, fields FROM wait_patterns

-- name: wake_all
UPDATE runs SET due_at = CASE WHEN owner IS NULL THEN '0001-01-01T00:00:00.000Z' END, woken = owner IS NOT NULL
WHERE id = ANY ($1::text[]) AND finished_at IS NULL

-- name: arrivals  since the run began, the earliest first
SELECT waits.run_id, arrivals.arrival, arrivals.data
FROM waits JOIN runs ON runs.id = waits.run_id JOIN arrivals ON arrivals.token = waits.token
WHERE waits.run_id = ANY ($1::text[]) AND NOT waits.cancels AND arrivals.received_at >= runs.started_at ORDER BY arrivals.position

-- name: forget_arrivals
DELETE FROM arrivals WHERE received_at < least(
    $1, (SELECT coalesce(min(started_at), '9999') FROM runs WHERE finished_at IS NULL)
)

-- name: add_caller
INSERT INTO callers (run_id, correlation_id, reply_to, caller) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING

-- name: served_callers
SELECT callers.run_id, callers.caller FROM callers JOIN runs ON runs.id = callers.run_id
WHERE runs.finished_at IS NOT NULL LIMIT $1

-- name: drop_caller
DELETE FROM callers WHERE run_id = $1 AND correlation_id = $2 AND reply_to = $3

-- name: add_outgoing
INSERT INTO outbox (exchange, routing_key, properties, body, mandatory) VALUES ($1, $2, $3, $4, $5)

-- name: bury  one that came again stands as it came last
INSERT INTO dead_letters (id, reason, handler, received_at, letter, body) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (id) DO UPDATE
SET received_at = excluded.received_at, letter = excluded.letter, body = excluded.body

-- name: forget_dead_runners  those whose lease has run out, and those that are silent and whose lock is free ($1: how long
-- the lease of a silent one lasts yet; $2: how soon after a start of the server nothing is made of a free lock)
DELETE FROM runners
WHERE lease_until < now() OR (
    lease_until < now() + make_interval(secs => $1::float) AND starts_with(id, 'lock:')
    AND pg_postmaster_start_time() < now() - make_interval(secs => $2::float)
    AND hashtextextended(id, 0) <> ALL (ARRAY(
        SELECT classid::bigint << 32 | objid::bigint FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND granted
    ))
)

-- name: put_back  what is ours and not in our hands: the answer in which we got it was lost
UPDATE runs SET owner = NULL, due_at = CASE WHEN state <> 'queued' OR request IS NOT NULL THEN $2 END
WHERE owner = $1 AND finished_at IS NULL AND id <> ALL ($3::text[])

-- name: take_due  but for those that need a slot and have none
UPDATE runs SET owner = $1, due_at = NULL, woken = false, asleep = false
WHERE id IN (
    SELECT id FROM runs
    WHERE due_at IS NOT NULL AND due_at <= $2 AND owner IS NULL AND finished_at IS NULL
        AND ($4::text[] IS NULL OR handler = ANY ($4)) AND (crashes >= $5) = $6
        AND NOT EXISTS (SELECT FROM gate WHERE run_id = runs.id AND begun AND slot IS NOT NULL AND state <> 'running')
    ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING id

-- name: take_orphans  runs whose runner's lease has run out; that is counted before they run again
UPDATE runs SET owner = $1, woken = false, asleep = false, crashes = crashes + CASE WHEN crashes < $4 THEN 1 ELSE 0 END
WHERE id IN (
    SELECT id FROM runs
    WHERE finished_at IS NULL AND owner IS NOT NULL AND owner NOT IN (SELECT id FROM runners WHERE lease_until >= now())
        AND ($3::text[] IS NULL OR handler = ANY ($3)) AND (crashes >= $4 OR NOT $5)
    LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING id

-- name: own_let_in  a suspect has its slot, and is left to who runs suspects
UPDATE runs SET owner = $1, due_at = NULL, woken = false, asleep = false,
    state = CASE state WHEN 'queued' THEN 'running' ELSE state END
WHERE id = ANY ($2::text[]) AND owner IS NULL AND finished_at IS NULL AND crashes < $3
RETURNING id

-- name: seize
UPDATE runs SET owner = $1, due_at = NULL WHERE id = $2

-- name: request
UPDATE runs SET request = coalesce(request, $1), due_at = CASE WHEN owner IS NULL THEN $2 ELSE due_at END,
    woken = woken OR owner IS NOT NULL
WHERE id = $3 AND finished_at IS NULL
RETURNING id

-- name: lost
SELECT id FROM runs WHERE id = ANY ($1::text[]) AND owner IS DISTINCT FROM $2

-- name: woken
UPDATE runs SET woken = false WHERE id = ANY ($1::text[]) AND woken RETURNING id

-- name: requests
SELECT id, request FROM runs WHERE request IS NOT NULL AND owner = $1

-- name: forget_runners
DELETE FROM runners WHERE id = ANY ($1::text[])

-- name: free_outbox
UPDATE outbox SET owner = NULL WHERE owner IS NOT NULL AND owner NOT IN (SELECT id FROM runners WHERE lease_until >= now())

-- name: take_outbox  by status, never by "position > last": positions are committed out of order. Also what is ours:
-- one task of a process sends, so that the answer in which it got those was lost
UPDATE outbox SET owner = $1
WHERE position IN (
    SELECT position FROM outbox WHERE (owner IS NULL OR owner = $1) AND (reason IS NULL OR $2)
    ORDER BY position LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING position, exchange, routing_key, properties, body, mandatory, reason

-- name: outbox_confirmed
DELETE FROM outbox WHERE position = ANY ($1::bigint[])

-- name: outbox_refused
UPDATE outbox SET owner = NULL, reason = u.reason
FROM unnest($1::bigint[], $2::text[]) AS u (position, reason) WHERE outbox.position = u.position

-- name: runs_whole
SELECT id, flow, handler, plan_hash, state, trigger, trace, data, started_at, finished_at, due_at, error, crashes,
    key, request, caller
FROM runs WHERE id = ANY ($1::text[])

-- name: run_ids_like
SELECT id FROM runs WHERE id >= $1 AND id < $1 || chr(1114111) LIMIT 2

-- name: records
SELECT run_id, body FROM records WHERE run_id = ANY ($1::text[]) ORDER BY run_id, number

-- name: known
SELECT id FROM runs WHERE id = ANY ($1)

-- name: holder
SELECT id FROM runs WHERE handler = $1 AND key = $2 AND key_until > $3

-- name: runs  the error by how its text begins: PostgreSQL's JSON fails on a NUL anywhere in it
SELECT id, flow, handler, state, trigger, started_at, finished_at, error FROM runs
WHERE ($1::text IS NULL OR state = $1) AND ($2::text IS NULL OR handler = $2)
    AND ($4::text IS NULL OR starts_with(error, $4))
ORDER BY started_at DESC, id DESC LIMIT $3

-- name: dead_letters
SELECT letter, body FROM dead_letters
WHERE ($1::text IS NULL OR reason = $1) AND ($2::text IS NULL OR handler = $2)
ORDER BY position DESC LIMIT $3

-- name: dead_letters_like
SELECT letter, body FROM dead_letters WHERE id >= $1 AND id < $1 || chr(1114111) ORDER BY id LIMIT 2

-- name: drop_letters  but not those that have come again since
DELETE FROM dead_letters
WHERE (id, received_at) IN (SELECT * FROM unnest($1::text[], $2::text[]))

-- name: backlog
SELECT
    (SELECT count(*) FROM runs
     WHERE finished_at IS NULL AND ($1::text[] IS NULL OR handler = ANY ($1)) AND NOT asleep),
    (SELECT count(*) FROM runs
     WHERE finished_at IS NULL AND ($1::text[] IS NULL OR handler = ANY ($1)) AND crashes >= $2),
    (SELECT count(*) FROM outbox WHERE reason IS NULL),
    (SELECT count(*) FROM outbox WHERE reason IS NOT NULL),
    (SELECT count(*) FROM dead_letters)

-- name: unfinished
SELECT handler, state, count(*) FROM runs WHERE finished_at IS NULL GROUP BY 1, 2

-- name: recent
SELECT handler, count(*), count(*) FILTER (WHERE state IN ('failed', 'compensated', 'compensation_failed')) FROM runs
WHERE started_at >= $1 GROUP BY handler

-- name: refused
SELECT position, exchange, routing_key, properties, body, mandatory, reason FROM outbox
WHERE reason IS NOT NULL ORDER BY position LIMIT $1

-- name: keep_plan
INSERT INTO plans (hash, sources) VALUES ($1, $2) ON CONFLICT (hash) DO NOTHING

-- name: unfinished_plans
SELECT hash, sources FROM plans WHERE hash IN (SELECT plan_hash FROM runs WHERE finished_at IS NULL)

-- name: keep_declared
INSERT INTO declared_objects (kind, name, body) SELECT * FROM unnest($1::text[], $2::text[], $3::text[])
ON CONFLICT (kind, name) DO UPDATE SET body = excluded.body

-- name: declared
SELECT kind, body FROM declared_objects ORDER BY kind, name

-- name: begin_schedule
INSERT INTO schedules (name, slot) VALUES ($1, $2) ON CONFLICT DO NOTHING

-- name: last_slot
SELECT slot FROM schedules WHERE name = $1

-- name: take_slot
UPDATE schedules SET slot = $2 WHERE name = $1 AND slot < $2 RETURNING slot

-- name: forget_full_buckets  (those that somebody takes from are left to the next)
DELETE FROM buckets
WHERE (name, key) IN (
    SELECT name, key FROM buckets WHERE full_at <= $1 ORDER BY full_at LIMIT 10 FOR UPDATE SKIP LOCKED
)

-- name: lock_buckets
SELECT pg_advisory_xact_lock(hashtext($1))

-- name: buckets
SELECT name, key, full_at FROM buckets
WHERE (name, key) IN (SELECT * FROM unnest($1::text[], $2::text[]))

-- name: keep_buckets
INSERT INTO buckets (name, key, full_at) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])
ON CONFLICT (name, key) DO UPDATE SET full_at = excluded.full_at
