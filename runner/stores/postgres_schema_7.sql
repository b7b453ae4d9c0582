-- The tables of the PostgreSQL store, version 7: a group of commits is one call, and so one way to the server and back,
-- and the log's lock is held while rows are written, but not while a client thinks.

CREATE FUNCTION log_events(
    -- The lock of the log; which of the changes count, null: all.
    log_name text, valid integer[],
    change integer[], id text[], type text[], source text[], subject text[], "time" text[], correlation_id text[],
    causation_id text[], data bytea[], run_id text[]
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    added bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext(log_name));
    -- Each statement of a function has a snapshot of its own: this one sees what was logged before the lock was ours.
    INSERT INTO events (id, type, source, subject, version, time, correlation_id, causation_id, data, run_id)
    SELECT u.id, u.type, u.source, u.subject,
        CASE WHEN u.subject IS NOT NULL THEN
            coalesce((SELECT max(version) FROM events e WHERE e.subject = u.subject), 0)
            + row_number() OVER (PARTITION BY u.subject ORDER BY u.place)
        END,
        u.time, u.correlation_id, u.causation_id, u.data, u.run_id
    FROM (
        SELECT DISTINCT ON (g.id, g.source) g.*
        FROM unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY AS g
            (change, id, type, source, subject, time, correlation_id, causation_id, data, run_id, place)
        WHERE $2 IS NULL OR g.change = ANY ($2)
        ORDER BY g.id, g.source, g.place
    ) AS u
    WHERE NOT EXISTS (SELECT FROM events e WHERE e.id = u.id AND e.source = u.source)
    ORDER BY u.place
    ON CONFLICT (id, source) DO NOTHING;
    GET DIAGNOSTICS added = ROW_COUNT;
    RETURN added;
END $$;

-- Makes changes durable, each whole or not at all. A change has a number in the group, and its rows bear it: `valid` are
-- those that began their run, or whose run is still ours. `sent` are the positions of their outgoing messages, in order.
CREATE FUNCTION commit_changes(
    us text, us_sending text, most_crashes integer, log_name text,
    begins integer[], begins_id text[], begins_flow text[], begins_handler text[], begins_plan_hash text[],
    begins_state text[], begins_trigger text[], begins_trace text[], begins_data bytea[], begins_started_at text[],
    begins_key text[], begins_key_until text[], begins_crashes integer[], begins_caller text[], begins_due_at text[],
    begins_finished_at text[], begins_error text[], begins_asleep integer[], begins_owner text[],
    goes_on integer[], goes_on_id text[], goes_on_state text[], goes_on_due_at text[], goes_on_finished_at text[],
    goes_on_error text[], goes_on_key_until text[], goes_on_suspect integer[], goes_on_forgive integer[],
    goes_on_asleep integer[],
    records integer[], records_run_id text[], records_number integer[], records_body text[],
    commands integer[], commands_id text[], commands_run_id text[],
    waits integer[], waits_token text[], waits_run_id text[], waits_cancels boolean[],
    ends integer[], ends_run_id text[],
    outgoing integer[], outgoing_exchange text[], outgoing_routing_key text[], outgoing_properties text[],
    outgoing_body bytea[], outgoing_mandatory boolean[],
    events integer[], events_id text[], events_type text[], events_source text[], events_subject text[],
    events_time text[], events_correlation_id text[], events_causation_id text[], events_data bytea[],
    events_run_id text[],
    OUT valid integer[], OUT sent bigint[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    found text[];
BEGIN
    valid := '{}';
    sent := '{}';
    IF cardinality(begins) > 0 THEN
        IF cardinality(array_remove(begins_key, NULL)) > 0 THEN  -- free those that were held until now
            UPDATE runs SET key_until = NULL
            FROM unnest(begins_handler, begins_key, begins_started_at) AS u (handler, key, now)
            WHERE runs.handler = u.handler AND runs.key = u.key AND runs.key_until <= u.now;
        END IF;
        WITH begun AS (  -- a run that stands already, or whose key is held, is left out
            INSERT INTO runs (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, key, key_until,
                crashes, caller, due_at, finished_at, error, asleep, owner)
            SELECT u.id, u.flow, u.handler, u.plan_hash, u.state, u.trigger, u.trace, u.data, u.started_at, u.key,
                u.key_until, u.crashes, u.caller, u.due_at, u.finished_at, u.error, u.asleep = 1, u.owner
            FROM unnest(begins_id, begins_flow, begins_handler, begins_plan_hash, begins_state, begins_trigger,
                begins_trace, begins_data, begins_started_at, begins_key, begins_key_until, begins_crashes,
                begins_caller, begins_due_at, begins_finished_at, begins_error, begins_asleep, begins_owner) AS u
                (id, flow, handler, plan_hash, state, trigger, trace, data, started_at, key, key_until, crashes, caller,
                due_at, finished_at, error, asleep, owner)
            ON CONFLICT DO NOTHING
            RETURNING id
        )
        SELECT array_agg(id) INTO found FROM begun;
        SELECT coalesce(array_agg(u.change), '{}') INTO valid
        FROM unnest(begins, begins_id) AS u (change, id) WHERE u.id = ANY (found);
    END IF;
    IF cardinality(goes_on) > 0 THEN
        IF cardinality(array_remove(goes_on_key_until, NULL)) > 0 THEN  -- free those that others held until now
            UPDATE runs SET key_until = NULL
            FROM unnest(goes_on_id, goes_on_due_at, goes_on_finished_at, goes_on_key_until) AS u
                (id, now, finished_at, key_until)
            JOIN runs AS mine ON mine.id = u.id
            WHERE u.key_until IS NOT NULL AND u.finished_at IS NULL AND runs.id <> u.id
                AND runs.handler = mine.handler AND runs.key = mine.key AND runs.key_until <= u.now;
        END IF;
        WITH ours AS (  -- only those that are still ours: a lease that ran out may have given them to another runner
            UPDATE runs SET state = u.state,
                due_at = CASE WHEN u.due_at IS NOT NULL AND runs.woken THEN '0001-01-01T00:00:00.000Z' ELSE u.due_at END,
                woken = runs.woken AND u.due_at IS NULL,
                asleep = u.asleep = 1,
                finished_at = u.finished_at, error = u.error,
                crashes = CASE
                    WHEN u.forgive = 1 THEN 0
                    WHEN u.due_at IS NULL AND u.finished_at IS NULL THEN runs.crashes + u.suspect
                    WHEN runs.crashes < most_crashes THEN 0
                    ELSE most_crashes
                END,
                key_until = CASE
                    WHEN u.finished_at IS NULL THEN coalesce(u.key_until, runs.key_until)
                    WHEN runs.key IS NOT NULL THEN u.key_until
                END,
                request = CASE WHEN u.finished_at IS NULL THEN runs.request END,
                owner = CASE WHEN u.due_at IS NULL AND u.finished_at IS NULL THEN us END
            FROM unnest(goes_on_id, goes_on_state, goes_on_due_at, goes_on_finished_at, goes_on_error,
                goes_on_key_until, goes_on_suspect, goes_on_forgive, goes_on_asleep) AS u
                (id, state, due_at, finished_at, error, key_until, suspect, forgive, asleep)
            WHERE runs.id = u.id AND runs.owner = us
            RETURNING runs.id
        )
        SELECT array_agg(id) INTO found FROM ours;
        valid := valid || ARRAY(
            SELECT u.change FROM unnest(goes_on, goes_on_id) AS u (change, id) WHERE u.id = ANY (found)
        );
    END IF;
    IF cardinality(records) > 0 THEN
        INSERT INTO records (run_id, number, body)
        SELECT u.run_id, u.number, u.body
        FROM unnest(records, records_run_id, records_number, records_body) AS u (change, run_id, number, body)
        WHERE u.change = ANY (valid);
    END IF;
    IF cardinality(commands) > 0 THEN
        INSERT INTO commands (id, run_id)
        SELECT u.id, u.run_id FROM unnest(commands, commands_id, commands_run_id) AS u (change, id, run_id)
        WHERE u.change = ANY (valid)
        ON CONFLICT DO NOTHING;
    END IF;
    IF cardinality(waits) > 0 THEN
        INSERT INTO waits (token, run_id, cancels)
        SELECT u.token, u.run_id, u.cancels
        FROM unnest(waits, waits_token, waits_run_id, waits_cancels) AS u (change, token, run_id, cancels)
        WHERE u.change = ANY (valid)
        ON CONFLICT DO NOTHING;
    END IF;
    IF cardinality(ends) > 0 THEN
        DELETE FROM waits WHERE run_id = ANY (
            ARRAY(SELECT u.run_id FROM unnest(ends, ends_run_id) AS u (change, run_id) WHERE u.change = ANY (valid))
        );
    END IF;
    IF cardinality(outgoing) > 0 THEN
        WITH added AS (
            INSERT INTO outbox (exchange, routing_key, properties, body, mandatory, owner)
            SELECT u.exchange, u.routing_key, u.properties, u.body, u.mandatory, us_sending
            FROM unnest(outgoing, outgoing_exchange, outgoing_routing_key, outgoing_properties, outgoing_body,
                outgoing_mandatory) WITH ORDINALITY AS u
                (change, exchange, routing_key, properties, body, mandatory, place)
            WHERE u.change = ANY (valid)
            ORDER BY u.place
            RETURNING position
        )
        SELECT coalesce(array_agg(position ORDER BY position), '{}') INTO sent FROM added;
    END IF;
    IF cardinality(events) > 0 AND cardinality(valid) > 0 THEN
        PERFORM log_events(log_name, valid, events, events_id, events_type, events_source, events_subject, events_time,
            events_correlation_id, events_causation_id, events_data, events_run_id);
    END IF;
END $$;
