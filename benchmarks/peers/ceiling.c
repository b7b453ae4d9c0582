/* The ceiling: a hop by librabbitmq, with no more than AMQP asks for.
 *
 * Takes each message from the queue `in`, sends its body on to `out`, persistent, and acknowledges it once the broker has
 * confirmed that: all of a confirmed prefix at once. It reads no body, checks nothing and keeps nothing.
 * The broker's URL is in BENCH_BROKER. Built by `benchmarks/ceiling.py`: cc -O2 ceiling.c -lrabbitmq
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <amqp.h>
#include <amqp_framing.h>
#include <amqp_tcp_socket.h>

enum { CHANNEL = 1, PREFETCH = 500, FRAME_MAX = 131072, HEARTBEAT_S = 0 };

static void must(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "ceiling: %s failed\n", what);
        exit(1);
    }
}

static void must_answer(amqp_connection_state_t connection, const char *what) {
    must(amqp_get_rpc_reply(connection).reply_type == AMQP_RESPONSE_NORMAL, what);
}

static amqp_connection_state_t connect_to(char *url) {
    struct amqp_connection_info where;
    must(url != NULL && amqp_parse_url(url, &where) == AMQP_STATUS_OK, "reading BENCH_BROKER");
    amqp_connection_state_t connection = amqp_new_connection();
    must(amqp_socket_open(amqp_tcp_socket_new(connection), where.host, where.port) == 0, "connecting");
    amqp_rpc_reply_t reply = amqp_login(connection, where.vhost, 0, FRAME_MAX, HEARTBEAT_S, AMQP_SASL_METHOD_PLAIN,
                                        where.user, where.password);
    must(reply.reply_type == AMQP_RESPONSE_NORMAL, "logging in");
    return connection;
}

static void begin(amqp_connection_state_t connection) {
    amqp_channel_open(connection, CHANNEL);
    must_answer(connection, "opening a channel");
    amqp_confirm_select(connection, CHANNEL);
    must_answer(connection, "asking for confirms");
    amqp_basic_qos(connection, CHANNEL, 0, PREFETCH, 0);
    must_answer(connection, "setting the prefetch");
    amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes("in"), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    must_answer(connection, "consuming");
}

static void send_on(amqp_connection_state_t connection) {
    amqp_message_t message;
    must(amqp_read_message(connection, CHANNEL, &message, 0).reply_type == AMQP_RESPONSE_NORMAL, "reading a message");
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_CONTENT_TYPE_FLAG,
        .delivery_mode = AMQP_DELIVERY_PERSISTENT,
        .content_type = amqp_cstring_bytes("application/json"),
    };
    int sent = amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, amqp_cstring_bytes("out"), 0, 0, &properties,
                                  message.body);
    must(sent == AMQP_STATUS_OK, "publishing");
    amqp_destroy_message(&message);
}

/* What was sent has the same number as what it came of: both are counted from one on, on one channel, in one order. */
static void acknowledge(amqp_connection_state_t connection, const amqp_basic_ack_t *confirm) {
    static uint64_t settled;
    static unsigned char confirmed[1 << 16]; /* of what is in flight: far less than that */
    const uint64_t mask = sizeof confirmed - 1;
    const uint64_t first = confirm->multiple ? settled + 1 : confirm->delivery_tag;
    for (uint64_t tag = first; tag <= confirm->delivery_tag; tag++) {
        confirmed[tag & mask] = 1;
    }
    const uint64_t before = settled;
    while (confirmed[(settled + 1) & mask]) {
        confirmed[++settled & mask] = 0;
    }
    if (settled > before) {
        must(amqp_basic_ack(connection, CHANNEL, settled, 1) == AMQP_STATUS_OK, "acknowledging");
    }
}

int main(void) {
    amqp_connection_state_t connection = connect_to(getenv("BENCH_BROKER"));
    begin(connection);
    for (;;) {
        amqp_frame_t frame;
        amqp_maybe_release_buffers(connection);
        must(amqp_simple_wait_frame(connection, &frame) == AMQP_STATUS_OK, "waiting for the broker");
        must(frame.frame_type == AMQP_FRAME_METHOD, "understanding the broker");
        if (frame.payload.method.id == AMQP_BASIC_DELIVER_METHOD) {
            send_on(connection);
        } else if (frame.payload.method.id == AMQP_BASIC_ACK_METHOD) {
            acknowledge(connection, frame.payload.method.decoded);
        } else {
            must(0, "what was sent: the broker nacked it, or closed the channel");
        }
    }
}
