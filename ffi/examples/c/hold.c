/*
 * Opens a model, touches every page of it, says so in one line of JSON, and holds it until its
 * standard input ends:
 *
 *     {"open_us": 113.2, "tensors": 103, "bytes": 90868376, "checksum": 1234567}
 *
 * open_us is the time of the open alone, from a connected client to the first byte read. The
 * checksum is the sum of the first byte of each 4 KiB page.
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <mrm.h>
#include <stdio.h>
#include <time.h>

enum { PAGE_BYTES = 4096 };

static int complain(const char *what) {
    mrm_error_t error;
    if (mrm_last_error(&error) == 0) {
        fprintf(stderr, "%s: %s\n", what, error.message);
    }
    return 1;
}

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static int touch(mrm_model_ref model, size_t segments, uint64_t *checksum) {
    for (size_t i = 0; i < segments; i++) {
        mrm_segment_t segment;
        if (mrm_model_segment_at(model, i, &segment) != 0) {
            return complain("segment");
        }
        const volatile unsigned char *bytes = segment.data_ptr;
        for (uint64_t at = 0; at < segment.bytes; at += PAGE_BYTES) {
            *checksum += bytes[at];
        }
    }
    return 0;
}

static int hold(mrm_client_ref client, const char *name) {
    const double start_us = now_us();
    mrm_model_h model = NULL;
    if (mrm_client_open(client, name, NULL, &model) != 0) {
        return complain(name);
    }
    mrm_segment_t first;
    int status = mrm_model_segment_at(model, 0, &first);
    if (status == 0 && first.bytes > 0) {
        (void)*(const volatile unsigned char *)first.data_ptr;
    }
    const double open_us = now_us() - start_us;

    mrm_model_info_t info = MRM_MODEL_INFO_INIT;
    uint64_t checksum = 0;
    if (status != 0 || mrm_model_info(model, &info) != 0) {
        status = complain("info");
    } else {
        status = touch(model, info.segments, &checksum);
    }
    if (status == 0) {
        printf("{\"open_us\": %.1f, \"tensors\": %zu, \"bytes\": %" PRIu64
               ", \"checksum\": %" PRIu64 "}\n",
               open_us, info.tensors, info.bytes, checksum);
        fflush(stdout);
        while (getchar() != EOF) {
        }
    }
    mrm_model_close(model);
    return status;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    mrm_client_h client = NULL;
    if (mrm_client_connect(NULL, &client) != 0) {
        return complain("connect");
    }
    const int status = hold(client, argv[1]);
    mrm_client_close(client);
    return status;
}
