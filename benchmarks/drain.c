/* The C client (rabbitmq-c): takes every message, acknowledges every 100th, keeps nothing.
 *
 * cc -O2 -o drain drain.c -lrabbitmq && ./drain HOST PORT USER PASSWORD VHOST QUEUE COUNT
 *
 * Prints one line of JSON like drain_clients.py, once every number has come. */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    long count = atol(argv[7]), taken = 0, different = 0;
    char *seen = calloc(count, 1);
    double wall_s = now(CLOCK_MONOTONIC), cpu_s = now(CLOCK_PROCESS_CPUTIME_ID);
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (amqp_socket_open(socket, argv[1], atoi(argv[2]))) return 1;
    amqp_rpc_reply_t reply = amqp_login(connection, argv[5], 0, 131072, 0,
                                        AMQP_SASL_METHOD_PLAIN, argv[3], argv[4]);
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) return 1;
    amqp_channel_open(connection, 1);
    amqp_basic_qos(connection, 1, 0, 1000, 0);
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(argv[6]), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    while (taken < count) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        reply = amqp_consume_message(connection, &envelope, NULL, 0);
        if (reply.reply_type != AMQP_RESPONSE_NORMAL) return 1;
        static char text[4096];
        size_t size = envelope.message.body.len < 4095 ? envelope.message.body.len : 4095;
        memcpy(text, envelope.message.body.bytes, size);
        text[size] = 0;
        char *field = strstr(text, "\"subOrderId\":");
        long number = field ? atol(field + 13) : -1;
        if (number >= 0 && number < count && !seen[number]) seen[number] = 1, different++;
        taken++;
        if (taken % 100 == 0 || taken == count)
            amqp_basic_ack(connection, 1, envelope.delivery_tag, 1);
        amqp_destroy_envelope(&envelope);
    }
    wall_s = now(CLOCK_MONOTONIC) - wall_s;
    cpu_s = now(CLOCK_PROCESS_CPUTIME_ID) - cpu_s;
    if (different != count) return 1;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"wall_s\": %f, \"cpu_s\": %f, \"rss_mib\": %f}\n", wall_s, cpu_s,
           usage.ru_maxrss / 1024.0);
    return 0;
}
